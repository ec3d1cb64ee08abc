"""The online store: the same features at serving as in training, from what is known of each entity now."""

from ct.features.online.rows import Freshness
from ct.features.online.store import Known, OnlineStore, in_use, opened

__all__ = ["Freshness", "Known", "OnlineStore", "in_use", "opened"]
