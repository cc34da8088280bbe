"""What a rented GPU costs: offers, estimates, caps, the length of a leash. Pure functions, in USD and hours."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters.manifest import Cost
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.planned_run import PlannedAnswers
from ansible.module_utils.lora_forge.planning import answering, memory

OVERHEAD = 0.25  # hours: a pod's boot, its environment, the base model; an assumption too
REHEARSAL = 0.1  # hours of a rehearsal
TOLERANCE = 1.05  # a pod may cost so much more than the catalogue says, for its disk
MARGIN, SPARE = 2.0, 1.0  # a leash is this many times the estimate, and so many hours, long
_LONGEST = 365 * 24 * 3600.0  # seconds; a training that claims to need more claims this
_MOST_STEPS = 1e9  # that a training may claim
_STOCKS = ("HIGH", "MEDIUM", "LOW")


@dataclasses.dataclass(frozen=True)
class Offer:
    """A GPU type in a cloud, at the price of a whole pod.

    Attributes:
        gpu: RunPod's id.
        cloud: SECURE or COMMUNITY.
        usd_per_hour: Of all the pod's GPUs.
        stock: HIGH, MEDIUM, LOW or NONE.
        memory_gb: Of one GPU.
        warning: Why it may not do, in words; empty where nothing speaks against it.
    """

    gpu: str
    cloud: str
    usd_per_hour: float
    stock: str
    memory_gb: int
    warning: str = ""


@dataclasses.dataclass
class Budget(JsonRecord):
    """What a pod costs and may cost. It goes through Ansible as a plain object, from the order to the watching.

    Attributes:
        usd_per_hour: The pod's price.
        spent: USD on earlier pods of the same runs.
        since: When the pod was ordered, in epoch seconds.
        max_usd: The user's cap on all that the runs cost; 0 for none.
        max_hours: The user's cap on the pod's life.
        deadline: When its leash ends it, in epoch seconds.
        pod: Its id at RunPod.
        pods: The ids of all pods that the runs have had, this one among them.
        claim: The file of its claim.
        root: The trainer's folder on the pod.
        max_usd_per_day: The user's cap on all pods of this owner in a day; 0 for none.
        max_usd_per_month: The same for a month.
        answering: Seconds that a run takes for its agent's cases when its training has ended, at most.
    """

    usd_per_hour: float
    spent: float
    since: float
    max_usd: float
    max_hours: float
    deadline: float = 0.0
    pod: str = ""
    pods: list[str] = dataclasses.field(default_factory=list)
    claim: str = ""
    root: str = ""
    max_usd_per_day: float = 0.0
    max_usd_per_month: float = 0.0
    answering: float = 0.0

    def with_answers(self, seconds: Any, ended: bool) -> Optional[float]:
        """Add to the seconds that a training still needs those for its cases; None where nothing is said.

        Once they are being answered, what that has taken is among the time that was lived.

        Args:
            seconds: That the training itself needs.
            ended: Whether its last step is done.
        """
        return None if seconds is None else seconds + (0.0 if ended else self.answering)


def gpu_id(name: str, catalogue: list[dict[str, Any]]) -> str:
    """Return the id of a GPU by its id or its shorter name.

    Raises:
        UserError: There is none; the nearest one is named.
    """
    for entry in catalogue:
        if name.lower() in (entry["id"].lower(), (entry.get("name") or "").lower()):
            return str(entry["id"])
    ids = sorted({entry["id"] for entry in catalogue})
    if not ids:
        raise UserError("RunPod's catalogue names no GPU at all; run the same command again in a while")
    by_lower = {text.lower(): text for text in ids}
    near = difflib.get_close_matches(name.lower(), by_lower, cutoff=0.3)
    hint = f"; did you mean «{by_lower[near[0]]}»?" if near else "."
    raise UserError(f"pod_gpus: RunPod has no GPU «{name}»{hint} There are: {', '.join(ids)}")


def find_offers(
    catalogues: dict[str, list[dict[str, Any]]],
    gpus: list[str],
    count: int,
    cap: float,
    memory_gib: float = 0,
    data_centers: Optional[list[str]] = None,
    floor_gib: float = 0,
    classes: Optional[dict[str, float]] = None,
) -> list[Offer]:
    """List what may be ordered, in the order in which it is tried: as named, but what is out of stock comes last.

    A GPU with less memory than the estimate is offered only where no other candidate will do, with a warning: an
    estimate chooses and warns, and refuses nothing. A name that RunPod's catalogue does not have is passed over, with a
    warning on each offer.

    Args:
        catalogues: RunPod's catalogue for each cloud that is allowed, as the client returns it.
        gpus: Candidates, the dearest to the user first.
        count: GPUs of a pod.
        cap: The most that a pod may cost an hour.
        memory_gib: What a training is thought to need on a GPU; 0 where nothing is known.
        data_centers: Where the pod must be; empty for anywhere.
        floor_gib: What it certainly needs, see ``memory.floor``; 0 where nothing is known.
        classes: The estimate with each file of configs/machines/, where that is known.

    Raises:
        UserError: No candidate will do; says why for each, and the cheapest that there is.
    """
    offers, refusals, prices = [], [], []
    unknown: list[UserError] = []
    for name in gpus:
        try:
            gpu = gpu_id(name, [entry for catalogue in catalogues.values() for entry in catalogue])
        except UserError as error:
            unknown.append(error)
            continue
        of_gpu = []
        for cloud, catalogue in catalogues.items():
            entry = next((entry for entry in catalogue if entry["id"] == gpu), None)
            price = round(float(entry["price"][cloud.lower()] or 0) * count, 4) if entry else 0.0
            if not entry or not entry[cloud.lower()] or not price:  # 0 means that it is not offered there
                continue
            most, memory_gb = entry["maxCount"][cloud.lower()], entry["memory"] or 0
            prices.append((price, gpu, cloud))
            if most is not None and most < count:
                refusals.append(f"{gpu} ({cloud}): at most {most} in a pod")
            elif memory_gb < floor_gib:  # «24 GB» on the box are 24 GiB, nearly; the gate looks at the very card
                refusal = f"{gpu}: {memory_gb} GB, but the weights alone take {floor_gib} GiB"
                refusals += [refusal] if refusal not in refusals else []
            elif price > cap:
                refusals.append(f"{gpu} ({cloud}): {price:.2f} USD/h")
            else:
                warning = _memory_warning(memory_gb, memory_gib, classes or {})
                stock = stock_level(entry, data_centers or [])
                of_gpu.append(Offer(gpu, cloud, price, stock, int(memory_gb), warning))
        offers += sorted(of_gpu, key=lambda offer: offer.usd_per_hour)
    if gpus and len(unknown) == len(gpus):
        raise unknown[0]
    offers = [offer for offer in offers if not offer.warning] or offers
    if offers:
        passed_over = [str(error).partition(" There are:")[0].rstrip(".") for error in unknown]
        told = [
            dataclasses.replace(offer, warning="; ".join(filter(None, [offer.warning, *passed_over])))
            for offer in offers
        ]
        return sorted(told, key=lambda offer: offer.stock == "NONE")
    within = f" within pod_max_usd_per_hour {cap:.2f}" if math.isfinite(cap) else ""
    cheapest = f" The cheapest of them is {min(prices)[1]} at {min(prices)[0]:.2f} USD/h." if prices else ""
    raise UserError(
        f"no GPU of pod_gpus will do{within}: "
        f"{'; '.join(refusals) or 'none is offered in ' + ' or '.join(catalogues)}.{cheapest}"
    )


def _memory_warning(memory_gb: float, needed_gib: float, classes: dict[str, float]) -> str:
    """Tell that a GPU may have too little memory, and the machine class with which it would do."""
    if memory_gb >= needed_gib:
        return ""
    fitting = memory.fitting_machine(memory_gb * memory.USABLE, classes)
    way_out = f"; with trainer_machine: {fitting} it is {classes[fitting]} GiB" if fitting else ""
    return f"{memory_gb} GB may be too little: {needed_gib} GiB is the estimate{way_out}"


def stock_level(gpu: dict[str, Any], data_centers: list[str]) -> str:
    """Return how much there is of a GPU, where it may be: HIGH, MEDIUM, LOW, NONE, or a word that is not described.

    Args:
        gpu: Its entry in RunPod's catalogue.
        data_centers: Where it may be; empty for anywhere.
    """
    if not data_centers:
        return str(gpu.get("availability") or "NONE")
    places = [place for place in gpu.get("dataCenters") or [] if place["id"] in data_centers]
    levels = [str(place.get("availability") or "NONE") for place in places]
    return min(levels, key=_scarcity) if levels else "NONE"


def _scarcity(level: str) -> int:
    """Return the rank of a stock level, the best first; a word that is not described is more than NONE."""
    if level in _STOCKS:
        return _STOCKS.index(level)
    return len(_STOCKS) + (level == "NONE")


def training_hours(run: dict[str, Any], gpu: str) -> Optional[float]:
    """Estimate how long a run will keep a GPU, in hours, before anything was measured.

    FLOPs = tokens (the plan's work) × 6 N, shared by the GPUs of the run: 2 N forward, 2 N backward (a LoRA's base is
    frozen, so no gradients of its weights), 2 N again for gradient checkpointing, with N the weights of the model's
    linear modules and output head (Kaplan et al. 2020, section 2.1, without attention). Divided by TFLOPS ×
    UTILISATION, and OVERHEAD and the answers to cases (``answering.seconds``) added.

    Args:
        run: A run of the plan, or its like.
        gpu: RunPod's id.

    Returns:
        None where the model or the GPU is not known.
    """
    if run["rehearsal"]:
        return REHEARSAL
    keys = run["recipe"]
    model = memory.find_model(keys)
    card = answering.card_of(gpu)
    if model is None or card is None:
        return None
    weights = model.linear_weights() + model.vocab * model.hidden
    tokens = run["estimate"]["work"] / run.get("gpus", 1)
    passes = 6 if keys.get("gradient_checkpointing") else 4
    training = tokens * passes * weights / (card[0] * 1e12 * answering.UTILISATION)
    return round((training + answering_seconds(run, gpu)) / 3600 + OVERHEAD, 3)


def answering_seconds(run: dict[str, Any], gpu: str) -> float:
    """Estimate how long a run answers its agent's cases, after its training or alone; 0 where that is not known.

    Args:
        run: A run of the plan, or its like.
        gpu: RunPod's id.
    """
    answers = PlannedAnswers.from_dict(run.get("estimate", {}).get("answers"))
    by_itself = answering.is_by_itself(run.get("evaluates", ""), run.get("gpus", 1) * len(run.get("hosts") or "1"))
    return 0.0 if run["rehearsal"] else answering.seconds(run["recipe"], answers, gpu, by_itself) or 0.0


def answering_after(runs: list[dict[str, Any]], gpu: str) -> float:
    """Return how many seconds one of several runs answers cases after its last step, at most.

    The steps of an evaluation are its answers, so that its pace has them in it already.

    Args:
        runs: Runs of the plan.
        gpu: RunPod's id.
    """
    return max((answering_seconds(run, gpu) for run in runs if not run.get("evaluates")), default=0.0)


def pod_hours(runs: list[dict[str, Any]], gpu: str) -> Optional[float]:
    """Estimate how long runs will keep a pod, in hours: those of one lane come one after the other, lanes run at once.

    Args:
        runs: Runs of the plan.
        gpu: RunPod's id.

    Returns:
        None where nothing is known of one of them, or there is none.
    """
    lanes: dict[int, float] = {}
    for run in runs:
        hours, lane = training_hours(run, gpu), run.get("lane", 0)
        if hours is None:
            return None
        lanes[lane] = lanes.get(lane, 0.0) + hours
    return max(lanes.values(), default=None)


def allowed_hours(estimate: Optional[float], rate: float, max_hours: float, max_usd: float, spent: float) -> float:
    """Return how many hours a pod may live from its order on: the length of its leash.

    The least of ``max_hours``, 2 × the estimate + 1 h, and what is left of ``max_usd``.

    Args:
        estimate: Hours; None where nothing is known.
        rate: USD an hour.
        max_hours: The user's cap.
        max_usd: The user's cap on all that the runs cost; 0 for none.
        spent: USD on earlier pods of the same runs.
    """
    limits = [max_hours]
    if estimate is not None:
        limits.append(MARGIN * estimate + SPARE)
    if max_usd:
        limits.append(max(0.0, max_usd - spent) / (rate * TOLERANCE))
    return min(limits)


@dataclasses.dataclass
class Pace:
    """The steps of a training, as one controller saw them go by on its own clock.

    A host says which step it is at, and how long the rest will take. Of that, steps alone are taken, and only those
    that it has not claimed before: what goes backwards and comes again is no progress.

    Attributes:
        since: When it was first looked at, or when the leash was renewed last, in epoch seconds.
        first: The highest step then.
        reached: The highest step since.
        planned: How many steps there are to be: the least that was ever said, as it must not grow with the training.
    """

    since: float = 0.0
    first: int = 0
    reached: int = 0
    planned: int = 0

    def see(self, now: float, step: Any, planned: Any) -> None:
        """Take a look's answer; one without sensible numbers is passed over.

        Args:
            now: Epoch seconds, by this controller's clock.
            step: The newest step.
            planned: How many there are to be.
        """
        if not all(isinstance(number, int) and 0 < number < _MOST_STEPS for number in (step, planned)):
            return
        if not self.planned:
            self.since, self.first, self.reached, self.planned = now, min(step, planned), min(step, planned), planned
        self.planned = min(self.planned, planned)
        self.reached = max(self.reached, min(step, self.planned))

    def seconds_left(self, now: float) -> Optional[float]:
        """Return how long the rest takes at the pace seen; None while no step was seen to be done."""
        if self.reached <= self.first:
            return None
        return (self.planned - self.reached) * max(0.0, now - self.since) / (self.reached - self.first)

    def renewed(self, now: float) -> None:
        """Begin anew: the next renewal takes steps that were done after this one."""
        self.since, self.first = now, self.reached


def claimed_seconds(eta: Any) -> Optional[float]:
    """Return what a host says that a training still needs, as far as it can be true; None where it says nothing.

    It may add to what was lived, and never take from it.

    Args:
        eta: Anything.
    """
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not math.isfinite(eta):
        return None
    return min(max(0.0, eta), _LONGEST)


def budget_breach(budget: Budget, now: float, eta: Any) -> str:
    """Tell why a training must end now, in words; empty while it may go on.

    What was lived counts, whatever the host says.

    Args:
        budget: Of its pod.
        now: Epoch seconds, by this controller's clock.
        eta: Seconds that the training still needs, by its host; None while there is no pace.
    """
    lived = max(0.0, now - budget.since)
    for left in dict.fromkeys((0.0, claimed_seconds(eta) or 0.0)):
        hours = (lived + left) / 3600
        usd = budget.spent + hours * budget.usd_per_hour
        measured = "at the measured pace it would come to" if left else "it has come to"
        if budget.max_usd and usd > budget.max_usd:
            return f"{measured} {usd:.2f} USD, and pod_max_usd is {budget.max_usd:.2f}"
        if hours > budget.max_hours:
            return f"{measured} {hours:.2f} h, and pod_max_hours is {budget.max_hours:.2f}"
    return ""


def usd_spent(budget: Optional[Budget], usd: float = 0, gpu_hours: Optional[float] = None) -> Cost:
    """Return what a run has cost, for its manifest.

    Args:
        budget: Of the pod; None for a trainer of one's own.
        usd: What its pods have cost, and no other manifest accounts for: see ``claims.undelivered_costs``.
        gpu_hours: What a cluster has given it, see ``run_state.gpu_hours``.
    """
    if not budget:
        return Cost(usd=0.0, usd_per_hour=0.0, source="own hardware", gpu_hours=gpu_hours)
    return Cost(round(usd, 4), budget.usd_per_hour, "RunPod's price × time", tuple(budget.pods))


def with_evaluation(cost: Cost, budget: Budget, usd: float) -> Cost:
    """Return what an adapter has cost, with what a pod cost on which it was evaluated later.

    Args:
        cost: What it had cost before.
        budget: Of that pod.
        usd: What its pods have cost, and no manifest accounts for: see ``claims.undelivered_costs``.
    """
    more = usd_spent(budget, usd)
    pods = tuple(dict.fromkeys([*(cost.pods or ()), *(more.pods or ())]))
    return dataclasses.replace(more, usd=round((cost.usd or 0.0) + (more.usd or 0.0), 4), pods=pods)


def renewed_deadline(budget: Budget, now: float, left: Optional[float], eta: Any = None) -> Optional[float]:
    """Return a later deadline for the leash, where the pace asks for one and the training can end within the caps.

    Of the pace that was seen and the one that the host claims, the shorter rest counts: a leash that is too short is
    renewed again, while steps go by.

    Args:
        budget: Of the pod.
        now: Epoch seconds, by this controller's clock.
        left: Seconds that the training still needs, by steps that this controller saw since the last renewal, see
            :class:`Pace`; None where it saw none: a renewal has to be earned.
        eta: Seconds that it still needs, by its host; None where that says nothing.

    Returns:
        Epoch seconds; None where the deadline stays.
    """
    if left is None or not 0 <= left < _LONGEST:
        return None
    limits = [budget.since + budget.max_hours * 3600]
    if budget.max_usd:
        if budget.usd_per_hour <= 0:  # nobody knows what it costs
            return None
        limits.append(budget.since + max(0.0, budget.max_usd - budget.spent) / budget.usd_per_hour * 3600)
    if now + left > min(limits):
        return None
    claimed = claimed_seconds(eta)
    rest = left if claimed is None else min(left, claimed)
    latest = min(now + MARGIN * rest + SPARE * 3600, *limits)
    needed = now + rest + SPARE * 3600 / 2  # what is left must hold the training, its collection, and some slack
    return round(latest) if needed > budget.deadline and latest > budget.deadline + 60 else None


def hours_text(hours: float) -> str:
    """Write hours as 2:24 h."""
    minutes = round(hours * 60)
    return f"{minutes // 60}:{minutes % 60:02} h"
