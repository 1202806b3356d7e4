-- One row per airport and hour, typed. Fog, wind and rain are judged by what disturbs flying:
-- visibility under 3 miles, gusts or wind over 25 mph, any precipitation.
with typed as (
    select
        origin as faa,
        try_cast(month as integer) as month_number,
        try_cast(temp as double) as temp_f,
        try_cast(wind_speed as double) as wind_mph,
        try_cast(wind_gust as double) as gust_mph,
        try_cast(precip as double) as precip_in,
        try_cast(visib as double) as visibility_miles,
        try_cast(time_hour as timestamp) as hour_utc
    from {{ source('raw', 'weather') }}
)

select
    *,
    coalesce(visibility_miles < 3, false) as low_visibility,
    coalesce(greatest(wind_mph, gust_mph) > 25, false) as windy,
    coalesce(precip_in > 0, false) as wet
from typed
