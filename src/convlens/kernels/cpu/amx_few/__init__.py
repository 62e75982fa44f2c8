"""`cpu.amx_few`: layers of few input channels on AMX tiles."""

from __future__ import annotations

from convlens.kernels.cpu.amx_few.kernel import AmxFew, AmxFewExact

__all__ = ["AmxFew", "AmxFewExact"]
