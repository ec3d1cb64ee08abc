"""The files that `ct init` writes: settings and a first pipeline that a user edits."""

from __future__ import annotations

_TOML = """# Settings of ct. Each may also come from the environment as CT_<NAME>.
pipeline = "pipeline.py"
landing = "landing"        # shards arrive here: landing/<table>/<shard>.parquet
# database_url = "postgresql+psycopg://user@host/ct"   # default: SQLite in .ct/
# ray_address = "auto"     # default: Ray on this machine
port = 8000
trusted_keys = [KEYS]  # only models signed by one of these are loaded; the private key lies outside the project
"""

_PIPELINE = '''"""What is learned, from which tables, and under which conditions it may go live."""

import ct

orders = ct.Table("orders", key="order_id", time="ordered_at", owner="shop", checks=[ct.NotNull("amount"), ct.Unique("order_id")])

pipeline = ct.Pipeline(
    name="late-orders",
    owner="shop",
    table=orders,
    label=ct.Label("days_late", above=0, known_at="delivered_at"),
    features=[
        ct.numeric("amount"),
        ct.category("country"),
        ct.cyclic("ordered_at", "hour", "weekday"),
        ct.window(orders, "days_late", by="country", over="7d", agg="mean", known_at="delivered_at"),
    ],
    segments=["country"],
    model=ct.Torch(ct.models.MLP, epochs=3, lr=ct.Search(1e-4, 1e-2, log=True), seed=7),
    gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.60), ct.ece(max=0.05)]),
    rollout=ct.Canary(10, 50, 100, guards=[ct.error_rate(), ct.latency("p99"), ct.quality()]),
    retrain=[ct.NewData(rows=20_000), ct.Every("7d"), ct.Drift()],
)
'''


def files(key: str) -> dict[str, str]:
    """File name → text. `key` is the public key that is trusted."""
    return {"ct.toml": _TOML.replace("KEYS", f'"{key}"'), "pipeline.py": _PIPELINE, ".gitignore": ".ct/\nlanding/\n"}
