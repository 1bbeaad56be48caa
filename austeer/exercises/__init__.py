"""`check_*`: is a reader's answer right, or how is it wrong; a verdict is shown, a run is never stopped."""

from austeer.exercises.activation_shifts import check_elsewhere, check_replaced_share
from austeer.exercises.adaptive_steering import check_fold, check_right_way
from austeer.exercises.alphasteer import check_projector, check_soft_gate
from austeer.exercises.atomic_units import check_contributions, check_head_writes, check_scale_output
from austeer.exercises.caa import check_common_share, check_matching
from austeer.exercises.controllers import check_arrived, check_last_gradient
from austeer.exercises.diffusion import check_mask_weight, check_unmask
from austeer.exercises.evaluation import check_calibrated, check_mcnemar
from austeer.exercises.heterogeneity import check_curse, check_discoveries, check_normalised_kl
from austeer.exercises.indicators import check_alike, check_turn
from austeer.exercises.momentum import check_null_by_pairs, check_overlap
from austeer.exercises.odesteer import check_euler, check_sketch_matrix
from austeer.exercises.router import check_advantages, check_target
from austeer.exercises.scale import check_halving, check_parameters
from austeer.exercises.scaling import check_log_odds, check_slope
from austeer.exercises.sparsity import check_cett_curve, check_effective_number
from austeer.exercises.start import check_swing, check_units_per_layer
from austeer.exercises.verdict import Verdict
from austeer.exercises.your_own import check_balance, check_choose

__all__ = [
    "Verdict",
    "check_advantages",
    "check_alike",
    "check_arrived",
    "check_balance",
    "check_calibrated",
    "check_cett_curve",
    "check_choose",
    "check_common_share",
    "check_contributions",
    "check_curse",
    "check_discoveries",
    "check_effective_number",
    "check_elsewhere",
    "check_euler",
    "check_fold",
    "check_halving",
    "check_head_writes",
    "check_last_gradient",
    "check_log_odds",
    "check_mask_weight",
    "check_matching",
    "check_mcnemar",
    "check_normalised_kl",
    "check_null_by_pairs",
    "check_overlap",
    "check_parameters",
    "check_projector",
    "check_replaced_share",
    "check_right_way",
    "check_scale_output",
    "check_sketch_matrix",
    "check_slope",
    "check_soft_gate",
    "check_swing",
    "check_target",
    "check_turn",
    "check_units_per_layer",
    "check_unmask",
]
