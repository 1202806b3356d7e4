-- One row per airport and month: hours in which the weather disturbs flying, and the airport's rank in that month (1 is worst).
with counted as (
    select
        hours.month_number,
        hours.faa,
        airports.name as airport,
        count(*) as hours_observed,
        count(*) filter (where hours.windy) as windy_hours,
        count(*) filter (where hours.low_visibility) as low_visibility_hours,
        count(*) filter (where hours.wet) as wet_hours,
        count(*) filter (where hours.windy or hours.low_visibility or hours.wet) as bad_hours,
        round(avg(hours.temp_f), 1) as mean_temp_f
    from {{ ref('weather_hours') }} as hours
    inner join {{ source('raw', 'airports') }} as airports on airports.faa = hours.faa
    group by all
)

select
    *,
    strftime(make_date(2013, month_number, 1), '%B') as month,
    row_number() over (partition by month_number order by bad_hours desc, faa) as rank_in_month
from counted
