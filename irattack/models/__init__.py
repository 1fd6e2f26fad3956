"""Models as the rest of irattack sees them: [0, 1] images in, logits out, frozen."""

from irattack.models.network import Ensemble, Network

__all__ = ["Ensemble", "Network"]
