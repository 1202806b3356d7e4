-- Every month of the year has exactly one worst airport.
select month_number, count(*) as worst
from {{ ref('worst_weather') }}
where rank_in_month = 1
group by month_number
having count(*) != 1
