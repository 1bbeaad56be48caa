"""Steering methods, one file each; every method is fitted or given what was read, and is a `Steering`."""

from austeer.methods.ablation import DirectionAblation
from austeer.methods.alphasteer import AlphaSteer
from austeer.methods.arm import ARM
from austeer.methods.austeer import AUSteer, DirectionalAUSteer
from austeer.methods.caa import CAA
from austeer.methods.iti import ITI
from austeer.methods.linact import LinAcT
from austeer.methods.mimic import MiMiC
from austeer.methods.odesteer import ODESteer
from austeer.methods.riser import RISER
from austeer.methods.rotation import Rotation
from austeer.methods.sadi import SADI
from austeer.methods.was import WAS

__all__ = [
    "ARM", "CAA", "ITI", "RISER", "SADI", "WAS", "AUSteer", "AlphaSteer", "DirectionAblation", "DirectionalAUSteer",
    "LinAcT", "MiMiC", "ODESteer", "Rotation",
]  # fmt: skip
