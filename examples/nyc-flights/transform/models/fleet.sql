-- One row per manufacturer and year of build: how many planes and seats flew out of New York.
select
    manufacturer,
    try_cast(year as integer) as built,
    count(*) as planes,
    sum(try_cast(seats as integer)) as seats
from {{ source('raw', 'planes') }}
group by all
