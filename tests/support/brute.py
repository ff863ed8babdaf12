"""A slow reference for the mathematics: plain Python numbers and loops, one response a list.

Written from the equations of PRIME (arXiv 2502.01456) and of the papers it builds on. A response is
the list of its own tokens' values; there is no padding, no mask and no tensor here.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

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


def mean_prefix_values(rewards: Sequence[float]) -> list[float]:
    """The mean of the rewards up to each."""
    return [math.fsum(rewards[: t + 1]) / (t + 1) for t in range(len(rewards))]


def group_outcomes(outcomes: Sequence[float], group: Sequence[int]) -> list[float]:
    """The mean outcome of each response's group."""
    own = {g: [o for o, other in zip(outcomes, group, strict=True) if other == g] for g in group}
    return [math.fsum(own[g]) / len(own[g]) for g in group]


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


def better_pairs(outcomes: Sequence[float], group: Sequence[int]) -> list[tuple[int, int]]:
    """Every (better, worse) pair of responses to one prompt."""
    pairs = itertools.permutations(range(len(group)), 2)
    return [(i, j) for i, j in pairs if group[i] == group[j] and outcomes[i] > outcomes[j]]


def pairwise_accuracy(
    scores: Sequence[float], outcomes: Sequence[float], group: Sequence[int]
) -> tuple[float, int]:
    """Pairs in which the better response has the higher score, ties one half; and the number of pairs."""
    pairs = better_pairs(outcomes, group)
    return sum((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2 for i, j in pairs), len(pairs)


# Advantages


def _means(rewards: Ragged, stands: list[list[bool]]) -> list[float]:
    """m_i: the mean over the rewards that response i has."""
    means = []
    for row, where in zip(rewards, stands, strict=True):
        own = [reward for reward, stand in zip(row, where, strict=True) if stand]
        means.append(math.fsum(own) / len(own))
    return means


def _each(rewards: Ragged, stands: list[list[bool]], centred: Callable[[int, float], float]) -> Ragged:
    """centred(response, reward) where a reward stands, 0 elsewhere."""
    return [
        [centred(i, reward) if stand else 0.0 for reward, stand in zip(*rows, strict=True)]
        for i, rows in enumerate(zip(rewards, stands, strict=True))
    ]


def centre_rloo(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """c_t = r_t - (1/(K-1)) sum_{j != i} m_j."""
    means = _means(rewards, stands)

    def centred(i: int, reward: float) -> float:
        others = [means[j] for j in range(len(group)) if group[j] == group[i] and j != i]
        return reward - math.fsum(others) / len(others)

    return _each(rewards, stands, centred)


def centre_released(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """c_t = r_t K/(K-1) - sum_j m_j/(K-1), j over the whole group."""
    means = _means(rewards, stands)

    def centred(i: int, reward: float) -> float:
        everyone = [means[j] for j in range(len(group)) if group[j] == group[i]]
        k = len(everyone)
        return reward * k / (k - 1) - math.fsum(everyone) / (k - 1)

    return _each(rewards, stands, centred)


def centre_grpo(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """(r_t - mean)/(std + 1e-6) over all rewards of the group; std divides by their number less one."""
    standing: dict[int, list[float]] = {g: [] for g in group}
    for g, row, where in zip(group, rewards, stands, strict=True):
        standing[g] += [reward for reward, stand in zip(row, where, strict=True) if stand]

    def centred(i: int, reward: float) -> float:
        everything = standing[group[i]]
        mean = math.fsum(everything) / len(everything)
        squares = math.fsum((other - mean) ** 2 for other in everything)
        std = math.sqrt(squares / (len(everything) - 1)) if len(everything) > 1 else 0.0
        return (reward - mean) / (std + 1e-6)

    return _each(rewards, stands, centred)


def centre_reinforce(rewards: Ragged, stands: list[list[bool]], group: Sequence[int]) -> Ragged:
    """c_t = r_t."""
    return _each(rewards, stands, lambda i, reward: reward)


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


def advantages(
    rewards: Ragged, ends: list[list[bool]], outcomes: Sequence[float], group: Sequence[int], config: Any
) -> tuple[Ragged, Ragged, Ragged]:
    """Process returns, outcome returns and advantages, as `config`, an AdvantageConfig, says."""
    centre = CENTRE[config.estimator, config.preset]
    stands = [positions(row, config.granularity) for row in ends]
    placed = [gather(row, where) for row, where in zip(rewards, stands, strict=True)]
    if config.scales_by_return:
        placed = scale_by_return(placed, config.process_gamma)
    process = [returns_to_go(row, config.process_gamma) for row in centre(placed, stands, group)]
    last = [positions(row, "response") for row in ends]
    placed = outcome_rewards(outcomes, [len(row) for row in ends])
    outcome = [returns_to_go(row, config.outcome_gamma) for row in centre(placed, last, group)]
    total = combine(process, outcome, config.process_weight, config.outcome_weight)
    return process, outcome, whiten(total) if config.whitens else total


def std(rows: Ragged) -> float:
    """Sample standard deviation over all tokens."""
    values = [value for row in rows for value in row]
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


# Losses


def token_weights(lengths: Sequence[int], reduction: str) -> tuple[Ragged, int]:
    """Weight of every token and the divisor: a mean over tokens, or over responses of their token means."""
    if reduction == "token":
        return [[1.0] * length for length in lengths], sum(lengths)
    return [[1.0 / length] * length for length in lengths], len(lengths)


def policy_token(new: float, old: float, advantage: float, low: float, high: float) -> tuple[float, bool]:
    """One token's clipped loss, and whether the clip removed its gradient."""
    ratio = math.exp(new - old)
    if advantage > 0 and ratio > 1 + high:  # has become likely enough
        return -(1 + high) * advantage, True
    if advantage < 0 and ratio < 1 - low:  # has become unlikely enough
        return -(1 - low) * advantage, True
    return -ratio * advantage, False


def policy_loss(
    new: Ragged, old: Ragged, advantages: Ragged, weights: Ragged, low: float, high: float
) -> tuple[float, float, float, Ragged]:
    """Weighted sums: loss, clipped tokens, KL estimate; and the gradient of the loss."""
    loss, clipped, kl, gradient = 0.0, 0.0, 0.0, []
    for rows in zip(new, old, advantages, weights, strict=True):
        gradient.append([])
        for n, o, a, weight in zip(*rows, strict=True):
            value, cut = policy_token(n, o, a, low, high)
            loss += weight * value
            clipped += weight * cut
            kl += weight * (math.exp(n - o) - 1 - (n - o))
            gradient[-1] += slopes(
                lambda x, o=o, a=a, w=weight: w * policy_token(x[0], o, a, low, high)[0], [n]
            )
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


def two_sided(value: float, outcome: float, margin: float, group_outcome: float | None) -> float:
    """-w1 o log sigmoid(v + b - m) - w0 (1 - o) log(1 - sigmoid(v + b + m)); b, w1 and w0 from the group's accuracy."""
    right, wrong = outcome, 1 - outcome
    if group_outcome is not None:
        share = min(1 - 1e-6, max(1e-6, group_outcome))
        value += math.log(share / (1 - share))
        right, wrong = right * (1 - group_outcome), wrong * group_outcome
    return right * minus_log_sigmoid(value - margin) + wrong * minus_log_sigmoid(-(value + margin))


def prefix_loss(
    rewards: Ragged, outcomes: Sequence[float], margin: float, means: Sequence[float | None]
) -> float:
    """Sum over responses of the mean over their prefixes."""
    total = 0.0
    for row, outcome, mean in zip(rewards, outcomes, means, strict=True):
        values = mean_prefix_values(row)
        total += math.fsum(two_sided(value, outcome, margin, mean) for value in values) / len(values)
    return total


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
    pairs = better_pairs(outcomes, group)
    return math.fsum(minus_log_sigmoid(scores[i] - scores[j]) for i, j in pairs), len(pairs)


def nca_loss(scores: Sequence[float], outcomes: Sequence[float], group: Sequence[int]) -> tuple[float, int]:
    """Sum over pairs of: the better is real data (once) and noise (one half), the worse is noise (one half)."""
    loss, pairs = 0.0, better_pairs(outcomes, group)
    for i, j in pairs:
        loss += minus_log_sigmoid(scores[i])
        loss += minus_log_sigmoid(-scores[i]) / 2 + minus_log_sigmoid(-scores[j]) / 2
    return loss, len(pairs)


def kto_loss(scores: Sequence[float], outcomes: Sequence[float], reference_point: float) -> float:
    """Sum of 1 - sigmoid(s - z0) over the right and of 1 - sigmoid(z0 - s) over the wrong."""
    loss, z0 = 0.0, max(reference_point, 0.0)
    for score, outcome in zip(scores, outcomes, strict=True):
        gain = score - z0 if outcome > 0.5 else z0 - score
        loss += 1 - math.exp(-minus_log_sigmoid(gain))
    return loss


def outcome_loss(
    name: str,
    scores: Sequence[float],
    outcomes: Sequence[float],
    group: Sequence[int],
    reference_point: float,
) -> tuple[float, int]:
    """The sum, and the number of responses or pairs."""
    if name == "ce":
        return ce_loss(scores, outcomes), len(scores)
    if name == "kto":
        return kto_loss(scores, outcomes, reference_point), len(scores)
    return {"dpo": dpo_loss, "nca": nca_loss}[name](scores, outcomes, group)


def prm_loss(
    name: str,
    rewards: Ragged,
    outcomes: Sequence[float],
    group: Sequence[int],
    steps: tuple[Ragged, list[list[bool]]],
    reference_point: float,
    margin: float = 0.0,
    balance: bool = False,
) -> tuple[float, int]:
    """The sum from token rewards, and what it counts; `steps` are labels, and where they stand."""
    means = group_outcomes(outcomes, group) if balance else [None] * len(outcomes)
    if name == "prefix":
        return prefix_loss(rewards, outcomes, margin, means), len(rewards)
    if balance:
        each = zip((response_score(row) for row in rewards), outcomes, means, strict=True)
        return math.fsum(two_sided(score, o, 0.0, mean) for score, o, mean in each), len(rewards)
    if name == "steps":
        return step_loss([prefix_values(row) for row in rewards], *steps)
    return outcome_loss(name, [response_score(row) for row in rewards], outcomes, group, reference_point)


# Controls of the benchmark


def maxrl_advantages(outcomes: Sequence[float], group: Sequence[int]) -> list[float]:
    """(o - mean) / mean of each response's group; 0 where nobody is right."""
    means = group_outcomes(outcomes, group)
    return [(o - mean) / mean if mean else 0.0 for o, mean in zip(outcomes, means, strict=True)]


def tpo_loss(
    new: Ragged, old: Ragged, outcomes: Sequence[float], group: Sequence[int], temperature: float
) -> float:
    """Cross-entropy of each group's shares to those that its standardised outcomes ask for."""
    total = 0.0
    for g in set(group):
        own = [i for i, other in enumerate(group) if other == g]
        mean = math.fsum(outcomes[i] for i in own) / len(own)
        deviation = math.sqrt(math.fsum((outcomes[i] - mean) ** 2 for i in own) / len(own))
        z = [(outcomes[i] - mean) / deviation if deviation > 1e-6 else 0.0 for i in own]
        before, after = ([math.exp(math.fsum(rows[i])) for i in own] for rows in (old, new))
        wanted = [p * math.exp(u / temperature) for p, u in zip(before, z, strict=True)]
        for q, p in zip(wanted, after, strict=True):
            total -= q / math.fsum(wanted) * math.log(p / math.fsum(after))
    return total


def masked_step_advantages(rewards: Ragged, group: Sequence[int]) -> Ragged:
    """The sum of rewards up to each token less the mean of such sums over the group's responses of that length."""
    sums = [prefix_values(row) for row in rewards]
    found = []
    for i, row in enumerate(sums):
        found.append([])
        for t, value in enumerate(row):
            alive = [sums[j][t] for j in range(len(sums)) if group[j] == group[i] and len(sums[j]) > t]
            found[-1].append(value - math.fsum(alive) / len(alive))
    return found


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


def best_of(
    right: Ragged, answers: Sequence[Sequence[Hashable | None]] | None, scores: dict[str, Ragged], n: int
) -> dict[str, float]:
    """Accuracy of every way to choose one of n responses: the mean over items and over all choices of n."""
    items = range(len(right))

    def vote(weights: Ragged) -> float:
        assert answers is not None
        return math.fsum(vote_subsets(answers[i], weights[i], right[i], n) for i in items) / len(right)

    highest = {"oracle": right} | scores
    found = {"random": math.fsum(math.fsum(row) / len(row) for row in right) / len(right)}
    for name, score in highest.items():
        found[name] = math.fsum(best_of_n_subsets(score[i], right[i], n) for i in items) / len(right)
    if answers is not None:
        found["majority vote"] = vote([[1.0] * len(row) for row in right])
        if "PRM" in scores:
            found["PRM-weighted vote"] = vote(
                [[1 / (1 + math.exp(-s)) for s in row] for row in scores["PRM"]]
            )
    return found


# Held-out quality


def roc_auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Every positive against every negative."""
    won, pairs = pairwise_accuracy(scores, labels, [0] * len(scores))
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
