-- The typed hours are as many as the loaded rows.
select loaded.rows, typed.rows as typed_rows
from (select count(*) as rows from {{ source('raw', 'weather') }}) as loaded,
    (select count(*) as rows from {{ ref('weather_hours') }}) as typed
where loaded.rows != typed.rows
