"""Steering methods, one file each; every method is fitted or given units, and is a `Steering`."""

from austeer.methods.austeer import AUSteer, DirectionalAUSteer

__all__ = ["AUSteer", "DirectionalAUSteer"]
