"""A result in one line."""

from tasks.records import AdaptResult, HeadFacts, Kind


def headline(result: AdaptResult) -> str:
    """The result in one line."""
    samples = f"{result.dataset.samples:,} samples"
    model = f"{result.model.name} version {result.model.version}" if result.model else "no version"
    failed = ", ".join(reason.check for reason in result.gate.reasons if not reason.passed)
    if result.state == "unchanged":
        before = f"{model} was made from these {samples}" if result.model else f"the gate failed on {failed}"
        return f"nothing changed since {before}"
    embedded = f"{result.embedding.computed:,} embedded now, {result.embedding.cached:,} from the cache"
    if result.state == "rejected":
        return f"not registered, the gate failed on {failed} ({samples}, {embedded})"
    alias = f" ({result.model.alias})" if result.model and result.model.alias else ""
    return f"{model}{alias} ({samples}, {embedded})"


def head_in_words(head: HeadFacts) -> str:
    """`logistic head, C = 0.01, temperature 0.930`."""
    words = [f"{head.kind} head"]
    if head.strength is not None:
        words.append(f"{strength_name(head.kind)} = {head.strength:g}")
    if head.temperature != 1:
        words.append(f"temperature {head.temperature:.3f}")
    return ", ".join(words)


def strength_name(kind: Kind) -> str:
    """What the strength of a head is: `C`, the inverse of its regularisation, or a count."""
    return {"knn": "k", "mlp": "epochs"}.get(kind, "C")
