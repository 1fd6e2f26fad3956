"""How tables and figures write models, norms and attacks."""

NAMES = {
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "resnet34": "RN-34",
    "resnet152": "RN-152",
    "densenet121": "DN-121",
    "densenet201": "DN-201",
    "ensemble": "Ensemble",
    "senet154": "SE-154",
    "inception_v3": "IncV3",
    "inception_v4": "IncV4",
    "inception_resnet_v2": "IncResV2",
    "inception_v3_ens3": "IncV3-ens3",
    "inception_v3_ens4": "IncV3-ens4",
    "inception_resnet_v2_ens3": "IncResV2-ens3",
    "resnet18": "RN-18",
    "resnet50": "RN-50",
    "inception_v2": "IncV2",
    "squeezenet": "SqueezeNet",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_edgetpu": "EdgeTPU",
    "efficientnet_lite0": "EffNet-Lite0",
    "deit_tiny": "DeiT-Ti",
    "vit": "ViT",
    "deit": "DeiT",
    "swin": "Swin",
    "convnext": "ConvNeXt",
    "resnet_adv": "RN-adv",
    "linf": "L∞",
    "l2": "L2",
    "free": "no ball",
}
METHODS = {
    **{
        "miir": "MI+IR",
        "vrir": "VR+IR",
        "sgmir": "SGM+IR",
        "tiir": "TI+IR",
        "hybridir": "HybridIR",
    },
    **{"ironly": "IR only", "singlestep": "single step", "maskaug": "masks", "noise": "noise"},
    **{
        "relaxed": "relaxed",
        "irmax": "IR, λ < 0",
        "irbalance": "IR, balanced",
        "irbaseline": "IRBaseline",
    },
    **{"pgdlong": "PGD, more steps", "pgdfine": "PGD, more and finer steps"},
    **{"milong": "MI, more steps", "mifine": "MI, more and finer steps"},
    **{"pgdrestarts": "PGD, restarts", "vrdraws": "VR, more noise", "didraws": "DI, more draws"},
    **{"mididraws": "MI+DI, more draws", "sini": "SI+NI", "linbp": "LinBP"},
}


def title(name: str) -> str:
    """How a table writes a model, `vgg16+jpeg75` as `VGG-16+jpeg75`, or a norm."""
    network, *defences = name.split("+")
    return "+".join([NAMES.get(network, network), *defences])


def method_name(method: str) -> str:
    """How a table writes a method: `ir lam=0.3` as `IR lam=0.3`."""
    name, _, settings = method.partition(" ")
    return f"{METHODS.get(name, name.upper())} {settings}".strip()


def signed(interval: tuple[float, float, float]) -> str:
    """How a table writes a gain and its interval, in points: `+3.1 [-0.4, +6.2]`."""
    value, low, high = interval
    return f"{value:+z.1f} [{low:+z.1f}, {high:+z.1f}]"


def clean_name(targeted: bool) -> str:
    """What heads the rates of clean images that count as success."""
    return "given the class when clean %" if targeted else "wrong when clean %"
