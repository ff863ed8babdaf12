"""A slow reference for the mathematics: plain Python numbers and loops, one response a list.

Written from the equations of PRIME (arXiv 2502.01456) and of the papers it builds on. A response is
the list of its own tokens' values; there is no padding, no mask and no tensor here.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence

Ragged = list[list[float]]


# Rewards


def token_rewards(logprobs: Ragged, reference: Ragged, beta: float) -> Ragged:
    """r_t = beta * (log phi - log ref)."""
    return [
        [beta * (p - q) for p, q in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(logprobs, reference, strict=True)
    ]


def response_score(rewards: Sequence[float]) -> float:
    """s = sum_t r_t."""
    return math.fsum(rewards)


def prefix_values(rewards: Sequence[float]) -> list[float]:
    """q_t = sum_{u <= t} r_u."""
    return [math.fsum(rewards[: t + 1]) for t in range(len(rewards))]


def positions(ends: Sequence[bool], granularity: str) -> list[bool]:
    """Whether a reward stands on each token; what follows the last step end is a step too."""
    last = len(ends) - 1
    stands = []
    for t, end in enumerate(ends):
        if granularity == "token":
            stands.append(True)
        elif granularity == "step":
            stands.append(end or t == last)
        else:
            stands.append(t == last)
    return stands


def gather(rewards: Sequence[float], stands: Sequence[bool]) -> list[float]:
    """Every stretch of tokens pays its sum where it ends."""
    placed, stretch = [], []
    for reward, stand in zip(rewards, stands, strict=True):
        stretch.append(reward)
        if stand:
            placed.append(math.fsum(stretch))
            stretch = []
        else:
            placed.append(0.0)
    return placed


def largest_return(rewards: Ragged, gamma: float) -> float:
    """The largest absolute return to go of a batch."""
    return max(abs(value) for row in rewards for value in returns_to_go(row, gamma))


def scale_by_return(rewards: Ragged, gamma: float) -> Ragged:
    """Rewards over the largest absolute return to go plus 1e-6."""
    divisor = largest_return(rewards, gamma) + 1e-6
    return [[reward / divisor for reward in row] for row in rewards]


def pairwise_accuracy(
    scores: Sequence[float], outcomes: Sequence[float], group: Sequence[int]
) -> tuple[float, int]:
    """Pairs in which the better response has the higher score, ties one half; and the number of pairs."""
    won, pairs = 0.0, 0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if group[i] == group[j] and outcomes[i] > outcomes[j]:
                pairs += 1
                if scores[i] > scores[j]:
                    won += 1.0
                elif scores[i] == scores[j]:
                    won += 0.5
    return won, pairs


# Advantages


def _means(rewards: Ragged, stands: list[list[bool]]) -> list[float]:
    """m_i: the mean over the rewards that response i has."""
    means = []
    for row, where in zip(rewards, stands, strict=True):
        own = [reward for reward, stand in zip(row, where, strict=True) if stand]
        means.append(math.fsum(own) / len(own))
    return means


def centre_rloo(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """c_t = r_t - (1/(K-1)) sum_{j != i} m_j."""
    means = _means(rewards, stands)
    centred = []
    for i, (row, where) in enumerate(zip(rewards, stands, strict=True)):
        others = [means[j] for j in range(len(rewards)) if group[j] == group[i] and j != i]
        baseline = math.fsum(others) / len(others)
        centred.append(
            [reward - baseline if stand else 0.0 for reward, stand in zip(row, where, strict=True)]
        )
    return centred


def centre_released(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """c_t = r_t K/(K-1) - sum_j m_j/(K-1), j over the whole group."""
    means = _means(rewards, stands)
    centred = []
    for i, (row, where) in enumerate(zip(rewards, stands, strict=True)):
        everyone = [means[j] for j in range(len(rewards)) if group[j] == group[i]]
        k = len(everyone)
        baseline = math.fsum(everyone) / (k - 1)
        centred.append(
            [
                reward * k / (k - 1) - baseline if stand else 0.0
                for reward, stand in zip(row, where, strict=True)
            ]
        )
    return centred


def centre_grpo(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """(r_t - mean)/(std + 1e-6) over all rewards of the group; std divides by their number less one."""
    centred = []
    for i, (row, where) in enumerate(zip(rewards, stands, strict=True)):
        everything = []
        for j in range(len(rewards)):
            if group[j] == group[i]:
                everything += [r for r, stand in zip(rewards[j], stands[j], strict=True) if stand]
        mean = math.fsum(everything) / len(everything)
        squares = math.fsum((reward - mean) ** 2 for reward in everything)
        std = math.sqrt(squares / (len(everything) - 1)) if len(everything) > 1 else 0.0
        centred.append(
            [
                (reward - mean) / (std + 1e-6) if stand else 0.0
                for reward, stand in zip(row, where, strict=True)
            ]
        )
    return centred


def centre_reinforce(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """c_t = r_t."""
    return [
        [r if stand else 0.0 for r, stand in zip(*rows, strict=True)]
        for rows in zip(rewards, stands, strict=True)
    ]


CENTRE: dict[tuple[str, str], Callable[..., Ragged]] = {
    ("rloo", "exact"): centre_rloo,
    ("rloo", "released"): centre_released,
    ("grpo", "exact"): centre_grpo,
    ("reinforce", "exact"): centre_reinforce,
}
"""The reference for every (estimator, preset)."""


def returns_to_go(rewards: Sequence[float], gamma: float) -> list[float]:
    """G_t = sum_{u >= t} gamma^(u-t) c_u."""
    return [
        math.fsum(gamma ** (u - t) * rewards[u] for u in range(t, len(rewards))) for t in range(len(rewards))
    ]


def outcome_rewards(outcomes: Sequence[float], lengths: Sequence[int]) -> Ragged:
    """The outcome on the last token."""
    return [[0.0] * (length - 1) + [outcome] for outcome, length in zip(outcomes, lengths, strict=True)]


def combine(process: Ragged, outcome: Ragged, process_weight: float, outcome_weight: float) -> Ragged:
    """A_t = w_process G^process_t + w_outcome G^outcome_t."""
    return [
        [process_weight * p + outcome_weight * o for p, o in zip(*rows, strict=True)]
        for rows in zip(process, outcome, strict=True)
    ]


def whiten(values: Ragged) -> Ragged:
    """(A - mean)/sqrt(variance + 1e-8) over every token of the batch."""
    tokens = [value for row in values for value in row]
    mean = math.fsum(tokens) / len(tokens)
    variance = math.fsum((value - mean) ** 2 for value in tokens) / len(tokens)
    return [[(value - mean) / math.sqrt(variance + 1e-8) for value in row] for row in values]


# Losses


def token_weights(lengths: Sequence[int], reduction: str) -> tuple[Ragged, int]:
    """Weight of every token and the divisor: a mean over tokens, or over responses of their token means."""
    if reduction == "token":
        return [[1.0] * length for length in lengths], sum(lengths)
    return [[1.0 / length] * length for length in lengths], len(lengths)


def policy_token(
    new: float, old: float, advantage: float, low: float, high: float
) -> tuple[float, bool, float]:
    """One token's clipped loss, whether the clip removed its gradient, and its derivative by `new`."""
    ratio = math.exp(new - old)
    if advantage > 0 and ratio > 1 + high:  # has become likely enough
        return -(1 + high) * advantage, True, 0.0
    if advantage < 0 and ratio < 1 - low:  # has become unlikely enough
        return -(1 - low) * advantage, True, 0.0
    return -ratio * advantage, False, -ratio * advantage


def policy_loss(
    new: Ragged, old: Ragged, advantages: Ragged, weights: Ragged, low: float, high: float
) -> tuple[float, float, float, Ragged]:
    """Weighted sums: loss, clipped tokens, KL estimate; and the gradient of the loss."""
    loss, clipped, kl, gradient = 0.0, 0.0, 0.0, []
    for rows in zip(new, old, advantages, weights, strict=True):
        gradient.append([])
        for n, o, advantage, weight in zip(*rows, strict=True):
            value, cut, slope = policy_token(n, o, advantage, low, high)
            loss += weight * value
            clipped += weight * cut
            kl += weight * (math.exp(n - o) - 1 - (n - o))
            gradient[-1].append(weight * slope)
    return loss, clipped, kl, gradient


def minus_log_sigmoid(x: float) -> float:
    """-log(1 / (1 + exp(-x)))."""
    return math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x)) - x


def ce_loss(scores: Sequence[float], outcomes: Sequence[float]) -> float:
    """-sum o log sigmoid(s) + (1 - o) log(1 - sigmoid(s))."""
    return math.fsum(
        o * minus_log_sigmoid(s) + (1 - o) * minus_log_sigmoid(-s)
        for s, o in zip(scores, outcomes, strict=True)
    )


def step_loss(values: Ragged, labels: Ragged, labelled: list[list[bool]]) -> tuple[float, int]:
    """-sum l log sigmoid(q) + (1 - l) log(1 - sigmoid(q)) over the labelled tokens, and their number."""
    loss, count = 0.0, 0
    for rows in zip(values, labels, labelled, strict=True):
        for q, label, counts in zip(*rows, strict=True):
            if counts:
                loss += label * minus_log_sigmoid(q) + (1 - label) * minus_log_sigmoid(-q)
                count += 1
    return loss, count


def dpo_loss(scores: Sequence[float], outcomes: Sequence[float], group: Sequence[int]) -> tuple[float, int]:
    """Sum over the (better, worse) pairs of every group of -log sigmoid(s_i - s_j), and their number."""
    loss, pairs = 0.0, 0
    for i, j in itertools.permutations(range(len(scores)), 2):
        if group[i] == group[j] and outcomes[i] > outcomes[j]:
            loss += minus_log_sigmoid(scores[i] - scores[j])
            pairs += 1
    return loss, pairs


def nca_loss(scores: Sequence[float], outcomes: Sequence[float], group: Sequence[int]) -> tuple[float, int]:
    """Sum over pairs of: the better is real data (once) and noise (one half), the worse is noise (one half)."""
    loss, pairs = 0.0, 0
    for i, j in itertools.permutations(range(len(scores)), 2):
        if group[i] == group[j] and outcomes[i] > outcomes[j]:
            loss += minus_log_sigmoid(scores[i])
            loss += minus_log_sigmoid(-scores[i]) / 2 + minus_log_sigmoid(-scores[j]) / 2
            pairs += 1
    return loss, pairs


def kto_loss(scores: Sequence[float], outcomes: Sequence[float], reference_point: float) -> float:
    """Sum of 1 - sigmoid(s - z0) over the right and of 1 - sigmoid(z0 - s) over the wrong."""
    loss, z0 = 0.0, max(reference_point, 0.0)
    for score, outcome in zip(scores, outcomes, strict=True):
        gain = score - z0 if outcome > 0.5 else z0 - score
        loss += 1 - math.exp(-minus_log_sigmoid(gain))
    return loss


def slopes(function: Callable[[list[float]], float], at: Sequence[float], step: float = 1e-5) -> list[float]:
    """Gradient by central differences."""
    gradient = []
    for i in range(len(at)):
        up, down = list(at), list(at)
        up[i] += step
        down[i] -= step
        gradient.append((function(up) - function(down)) / (2 * step))
    return gradient


# Voting


def pass_at_k(n: int, right: int, k: int) -> float:
    """The share of k-subsets of n samples with a right one among them; the first `right` are right."""
    subsets = list(itertools.combinations(range(n), k))
    return sum(any(sample < right for sample in subset) for subset in subsets) / len(subsets)


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> int:
    """First response with the heaviest answer; the answer seen first among equals; 0 if nobody answered."""
    best, heaviest = 0, None
    for i, answer in enumerate(answers):
        if answer is None or answer in answers[:i]:
            continue
        total = sum(weights[j] for j in range(len(answers)) if answers[j] == answer)
        if heaviest is None or total > heaviest:
            best, heaviest = i, total
    return best


def best_of_n_subsets(scores: Sequence[float], outcomes: Sequence[float], n: int) -> float:
    """Every n-subset in turn; those that share its highest score share its outcome."""
    total, subsets = 0.0, 0
    for subset in itertools.combinations(range(len(scores)), n):
        highest = max(scores[i] for i in subset)
        best = [outcomes[i] for i in subset if scores[i] == highest]
        total += sum(best) / len(best)
        subsets += 1
    return total / subsets


def vote_subsets(
    answers: Sequence[Hashable | None], weights: Sequence[float], outcomes: Sequence[float], n: int
) -> float:
    """The vote among every n-subset in turn."""
    total, subsets = 0.0, 0
    for subset in itertools.combinations(range(len(answers)), n):
        winner = weighted_vote([answers[i] for i in subset], [weights[i] for i in subset])
        total += outcomes[subset[winner]]
        subsets += 1
    return total / subsets


def wilson_interval(right: int, n: int, z: float) -> tuple[float, float]:
    """The shares p with (right/n - p)^2 = z^2 p (1 - p) / n: the roots of a quadratic."""
    share = right / n
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


# Held-out quality


def roc_auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Every positive against every negative."""
    won, pairs = 0.0, 0
    for i, j in itertools.permutations(range(len(scores)), 2):
        if labels[i] and not labels[j]:
            pairs += 1
            won += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return won / pairs if pairs else math.nan


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[float], bins: int) -> float:
    """Bin by bin; the first bin is closed on both sides."""
    error = 0.0
    for b in range(bins):
        inside = [
            (p, o)
            for p, o in zip(probabilities, outcomes, strict=True)
            if b / bins < p <= (b + 1) / bins or (b == 0 and p == 0)
        ]
        if inside:
            confidence = math.fsum(p for p, _ in inside) / len(inside)
            accuracy = math.fsum(o for _, o in inside) / len(inside)
            error += len(inside) / len(probabilities) * abs(accuracy - confidence)
    return error


def first_error(scores: Sequence[float], threshold: float) -> int:
    """Step by step."""
    for step in range(len(scores)):
        if scores[step] < threshold:
            return step
    return -1


def first_error_f1(predicted: Sequence[int], labels: Sequence[int]) -> tuple[float, float, float]:
    """Two accuracies and 2ab/(a + b)."""
    on_wrong = [p == label for p, label in zip(predicted, labels, strict=True) if label != -1]
    on_right = [p == label for p, label in zip(predicted, labels, strict=True) if label == -1]
    a = sum(on_wrong) / len(on_wrong) if on_wrong else math.nan
    b = sum(on_right) / len(on_right) if on_right else math.nan
    return a, b, 0.0 if a == b == 0 else 2 * a * b / (a + b)


def largest_f1(step_scores: Ragged, labels: Sequence[int]) -> float:
    """Every score as the threshold, one above them all and one below: with it, all predictions there are."""
    scores = sorted({score for row in step_scores for score in row})
    thresholds = [scores[0] - 1.0, *scores, scores[-1] + 1.0]
    return max(
        first_error_f1([first_error(row, threshold) for row in step_scores], labels)[2]
        for threshold in thresholds
    )
