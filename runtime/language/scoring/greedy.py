"""Greedy generation: the most probable token, again and again, one pass of the pipeline for each.

Every pass computes the whole sequences anew. That is correct for any model and keeps nothing
between passes; it takes time where many tokens are generated.
"""

from collections.abc import Callable, Sequence

from runtime.language.scoring.scorer import Scorer


def generate_greedily(
    scorer: Scorer,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    is_done: Callable[[Sequence[int]], bool],
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue each context with the most probable tokens.

    Args:
        scorer: The model.
        contexts: Token ids, at least one each.
        max_new_tokens: For each context, at most.
        is_done: Whether the tokens generated so far are enough; asked after each token.
        progress: Told how many more contexts are done.

    Returns:
        The new tokens of each context, with those that made it done.

    Raises:
        ModelError: a sequence became too long for the model.
        RemoteError: a stage failed, ended without a word, or did not get on in time.
    """
    generated: list[list[int]] = [[] for _ in contexts]
    open_ = list(range(len(contexts)))
    for count in range(1, max_new_tokens + 1):
        tokens = scorer.next_tokens([(*contexts[n], *generated[n]) for n in open_])
        for n, token in zip(open_, tokens, strict=True):
            generated[n].append(token)
        before = len(open_)
        last = count == max_new_tokens
        open_ = [] if last else [n for n in open_ if not is_done(generated[n])]
        if progress is not None and before > len(open_):
            progress(before - len(open_))
        if not open_:
            break
    return generated
