"""One step of GLIF; its threshold may also follow the membrane. Equations: README.md."""

from blockspike.neurons.model import NeuronModel, maximum, where

N_KERNELS = 2
"""After-spike currents, and threshold kernels, that a neuron may have."""


def advance(drive, parameters, constants, state, coupled, fire):
    """One step with `coupled` added to the threshold, its part that follows the membrane."""
    (
        beta, reset_share, refractory, current_1, current_decay_1, current_2, current_decay_2,
        threshold_1, threshold_decay_1, threshold_2, threshold_decay_2,
    ) = parameters  # fmt: skip
    zero, one = constants
    membrane, in_current_1, in_current_2, in_threshold_1, in_threshold_2, refractory_left = state
    drive = drive - current_1 * in_current_1 - current_2 * in_current_2
    input_mask = where(refractory_left > zero, zero, one)
    # Sums and not a choice, so that a NaN in the drive is never lost.
    membrane = (beta * membrane + drive) * input_mask + membrane * (one - input_mask)
    threshold = one + threshold_1 * in_threshold_1 + threshold_2 * in_threshold_2 + coupled
    margin = membrane - threshold
    spike, not_spiked = fire(margin)
    after = membrane * not_spiked + reset_share * membrane * (one - not_spiked)
    refractory_left = where(spike > zero, refractory, maximum(refractory_left - one, zero))
    return spike, margin, (
        after,
        current_decay_1 * in_current_1 + spike,
        current_decay_2 * in_current_2 + spike,
        threshold_decay_1 * in_threshold_1 + spike,
        threshold_decay_2 * in_threshold_2 + spike,
        refractory_left,
    )  # fmt: skip


def step(drive, parameters, constants, state, fire):
    """One step of GLIF whose threshold depends on its spikes alone."""
    return advance(drive, parameters, constants, state, constants[0], fire)


def follow(membrane, following, decay, onset, width, quarter_of_inverse_width):
    """Let what the threshold follows decay to the rectified membrane after a reset."""
    above = membrane - onset
    bend = maximum(above + width, 0.0)
    rectified = where(above > width, above, quarter_of_inverse_width * bend * bend)
    return rectified + decay * (following - rectified)


def coupled_step(drive, parameters, constants, state, fire):
    """One step of GLIF whose threshold also follows the membrane."""
    coupling, coupling_decay, onset, width, quarter_of_inverse_width = parameters[11:]
    following = state[5]
    own = (state[0], state[1], state[2], state[3], state[4], state[6])
    coupled = coupling * following
    spike, margin, after = advance(drive, parameters[:11], constants, own, coupled, fire)
    following = follow(after[0], following, coupling_decay, onset, width, quarter_of_inverse_width)
    return spike, margin, (
        after[0], after[1], after[2], after[3], after[4], following, after[5],
    )  # fmt: skip


_PARAMETERS = (
    "beta", "reset_share", "refractory", "current_1", "current_decay_1", "current_2",
    "current_decay_2", "threshold_1", "threshold_decay_1", "threshold_2", "threshold_decay_2",
)  # fmt: skip
_STATES = ("membrane", "in_current_1", "in_current_2", "in_threshold_1", "in_threshold_2")
_OF_THRESHOLD = ("threshold_1", "threshold_2")
GLIF = NeuronModel(
    "glif",
    parameters=_PARAMETERS,
    states=_STATES,
    counters=("refractory_left",),
    threshold_parameters=_OF_THRESHOLD,
    step=step,
)
COUPLED_GLIF = NeuronModel(
    "glif, threshold coupled",
    parameters=(
        *_PARAMETERS, "coupling", "coupling_decay", "coupling_onset", "coupling_width",
        "quarter_of_inverse_width",
    ),
    states=(*_STATES, "following"),
    counters=("refractory_left",),
    threshold_parameters=(*_OF_THRESHOLD, "coupling"),
    step=coupled_step,
)  # fmt: skip
