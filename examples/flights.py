"""Will this flight arrive more than 15 minutes late? Asked at its scheduled departure, on flights from New York in 2013."""

import ct

flights = ct.Table(
    "flights",
    key="flight_id",
    time="scheduled_departure",
    owner="ops",
    checks=[
        ct.NotNull("carrier", "origin", "dest"),
        ct.Within("distance", 1, 6000),
        ct.Steady("distance", by=("origin", "dest")),
        ct.Unique("flight_id"),
        ct.Present("origin"),
        ct.quarantine(ct.Compare("scheduled_departure", "<", "arrival_time")),  # such rows are set aside, the others land
        ct.warn(ct.RowCount(factor=2)),
    ],
    slices=["carrier", "origin"],
)
weather = ct.Table(
    "weather",
    key="origin",
    time="observed_at",
    owner="met",
    checks=[ct.NotNull("origin"), ct.warn(ct.Usual("wind_speed"))],
)

pipeline = ct.Pipeline(
    name="flight-delay",
    owner="ops",
    table=flights,
    tables=[weather],
    label=ct.Label("arr_delay", above=15, known_at="arrival_time"),  # the truth is known once the flight has landed
    features=[
        ct.numeric("distance", "scheduled_minutes"),
        ct.category("carrier", "origin", "dest"),
        ct.cyclic("scheduled_departure", "hour", "weekday", tz="America/New_York"),
        ct.latest(weather, "humid", "pressure", "wind_speed", "precip", "visib", within="3h"),
        ct.window(flights, "arr_delay", by="tailnum", over="1d", agg="last", known_at="arrival_time"),
        ct.window(flights, "arr_delay", by="tailnum", over="7d", agg="mean", known_at="arrival_time"),
        ct.window(flights, "arr_delay", by=("carrier", "flight"), over="30d", agg="mean", known_at="arrival_time"),
        ct.window(flights, "arr_delay", by=("origin", "carrier"), over="1d", agg="mean", known_at="arrival_time"),
        ct.window(flights, "arr_delay", by="origin", over=("1h", "3h"), known_at="arrival_time"),
        ct.window(flights, "arr_delay", by="origin", over="3h", agg="count", known_at="arrival_time"),
        ct.about(
            ct.window(flights, "arr_delay", by="dest", over=("3h", "1d"), known_at="arrival_time"),
            description="how late flights to the same airport have just been",
        ),
    ],
    rows=ct.newest("200d", older=0.5, by="carrier"),
    segments=["carrier", "origin"],
    holdout="28d",  # judged on four weeks: in two, one storm decides the calibration
    model=ct.Torch("TabM", epochs=3, lr=ct.Search(2e-3, 3.2e-2, log=True), seed=7, options={"members": 4, "dropout": 0.0}),
    gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.60), ct.ece(max=0.05)]),
    rollout=ct.Canary(10, 50, 100, guards=[ct.error_rate(), ct.latency("p99"), ct.quality()]),
    retrain=[ct.NewData(rows=20_000), ct.Every("7d"), ct.Drift()],
)
