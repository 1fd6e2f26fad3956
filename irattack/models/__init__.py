"""Models as the rest of irattack sees them: [0, 1] images in, logits out, frozen.

`zoo` names, describes and builds them; nothing in it waits for PyTorch before a network is built.
"""
