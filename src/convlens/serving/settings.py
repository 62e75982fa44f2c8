"""Everything that can be set about a server: flags and help derive from this record."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LOOPBACK", "ServeSettings"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServeSettings(BaseModel):
    """Limits and places; sizes in bytes, times in milliseconds or seconds as named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    token: str | None = Field(default=None, min_length=8, repr=False)
    insecure: bool = False
    """Answer other machines without a token."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    batch: int = Field(default=32, ge=1, le=1024)
    """Pictures computed together at most."""
    wait_ms: float = Field(default=2.0, ge=0, le=1000)
    """Longest time the first picture of a batch waits for company while the processor is idle."""
    queue: int = Field(default=256, ge=1)
    """Pictures waiting at most; beyond that requests are answered 429."""
    budget_s: float = Field(default=2.0, gt=0)
    """Longest wait that a request may expect, by what the last ones took; beyond that it is answered 429."""
    timeout_s: float = Field(default=10.0, gt=0)
    """A request that takes longer, its body included, is answered 503."""
    threads: int = Field(default=1, ge=1)
    """Processor threads of one batch."""
    workers: int = Field(default=0, ge=0)
    """Batches computed at once; 0: as many as the cores have threads for."""
    body_bytes: int = Field(default=16 << 20, ge=1)
    held_bytes: int = Field(default=256 << 20, ge=1)
    """Bytes of all bodies that are read or waiting; beyond that requests are answered 429."""
    pixels: int = Field(default=50_000_000, ge=1)
    images: int = Field(default=64, ge=1)
    """Pictures in one request at most."""
    watch_s: float = Field(default=2.0, ge=0)
    """How often model files are looked at for a newer one; 0 never."""
    drain_s: float = Field(default=30.0, gt=0)
    """Longest time in-flight requests get after SIGTERM."""
    linger_s: float = Field(default=0.5, ge=0)
    """After SIGTERM new requests are still answered for so long, each with ``Connection: close``."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.host not in LOOPBACK and self.token is None and not self.insecure:
            raise ValueError(
                f"host {self.host} lets other machines ask: give a token (--token-file, or CONVLENS_TOKEN), "
                "or say --insecure"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls: a certificate and a key belong together")
        return self
