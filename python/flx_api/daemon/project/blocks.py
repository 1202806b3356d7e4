"""From the names of a run to its blocks and state ids, as `meltano run` would make them.

Strategy: the two passes of Meltano's `BlockParser` over the model instead of over live plugins: job names are replaced
by their tasks once, each name finds its plugin, then an extractor takes mappers and a loader behind it, and whatever is
no Singer plugin is a command.

Rules:
- Pure: a model and names in; blocks, or `ValidationFailed` naming the block's place, out.
- Meltano's oddities are kept where a run would show them; each is marked by a comment.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from flx_api.errors import FieldError, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flx_api.daemon.project.model import Environment, Plugin, ProjectModel

STATE_ID_DELIMITER = ":"
_CONSUMERS = frozenset({"loaders", "mappers"})
_SINGER = frozenset({"extractors", "loaders", "mappers"})
_VARIABLE = re.compile(r"(?P<escape>\\)?\$(?:{(?P<curly>\w+)}|(?P<normal>[A-Z][A-Z0-9_]*))")


class SingerBlock(msgspec.Struct, frozen=True, tag_field="kind", tag="singer"):
    """An extractor piped through mappers into a loader; `state_id` is None when no environment is active."""

    extractor: str
    mappers: tuple[str, ...]
    loader: str
    state_id: str | None


class CommandBlock(msgspec.Struct, frozen=True, tag_field="kind", tag="command"):
    """A plugin invoked by itself, with one of its commands or none."""

    plugin: str
    command: str | None


Block = SingerBlock | CommandBlock


class _Named(NamedTuple):
    """A block name, the plugin it found, its command, and its place in the request."""

    name: str
    plugin: Plugin
    command: str | None
    place: int


def expand(
    model: ProjectModel, names: Sequence[str], environment: str | None, suffix: str | None = None
) -> tuple[Block, ...]:
    """The blocks of `meltano run NAMES`.

    Args:
        model: the project.
        names: jobs, plugins, mappings and `plugin:command`, as on the command line.
        environment: the active environment; None runs without state.
        suffix: the value of `--state-id-suffix`.

    Raises:
        ValidationFailed: a name, their order or the environment is not acceptable.
    """
    active = None
    if environment is not None:
        active = next((found for found in model.environments if found.name == environment), None)
        if active is None:
            raise _refusal(field="environment", reason="the project has no such environment")
    return tuple(_blocks(model, _find_all(model, names), active, suffix))


def expand_variables(text: str, values: Mapping[str, str]) -> str:
    """The text with `$NAME` and `${NAME}` replaced, a missing one by nothing, as Meltano does outside strict mode."""

    def replace(match: re.Match[str]) -> str:
        name = match["curly"] or match["normal"]
        if match["escape"]:
            return f"${{{name}}}" if match["curly"] else f"${name}"
        return values.get(name, "")

    return _VARIABLE.sub(replace, text)


def variables_in(text: str) -> frozenset[str]:
    """The names a text refers to."""
    return frozenset(match["curly"] or match["normal"] for match in _VARIABLE.finditer(text))


def _find_all(model: ProjectModel, names: Sequence[str]) -> list[_Named]:
    return [_find(model, name, place) for name, place in _without_jobs(model, names)]


def _without_jobs(model: ProjectModel, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    for place, name in enumerate(names):
        job = model.jobs_by_name.get(name)
        if job is None:
            yield name, place
            continue
        if job.problem:
            raise _refusal(field=f"blocks[{place}]", reason=f"the job cannot be run: {job.problem}")
        # Jobs are expanded once: the name of a job inside a job is looked up as a plugin.
        for task in job.tasks:
            for block in task:
                yield block, place


def _find(model: ProjectModel, name: str, place: int) -> _Named:
    field = f"blocks[{place}]"
    # Exactly one colon makes a command; with two the whole text is the name, and will not be found.
    head, *rest = name.split(STATE_ID_DELIMITER)
    command = rest[0] if len(rest) == 1 else None
    wanted = head if len(rest) == 1 else name
    plugin = model.runnable.get(wanted)
    if plugin is None:
        known = [*model.jobs_by_name, *model.runnable]
        raise _refusal(field, "no plugin, mapping or job has this name", get_close_matches(wanted, known, 3))
    if wanted in model.ambiguous_mappings and wanted != plugin.name:
        raise _refusal(field, "more than one mapper has a mapping of this name")
    if plugin.source == "broken":
        raise _refusal(field, f"the plugin cannot be used: {plugin.problem}")
    if name in model.jobs_by_name:
        raise _refusal(field, "is both a job and a plugin")
    return _Named(wanted, plugin, command or None, place)


def _blocks(
    model: ProjectModel, found: list[_Named], environment: Environment | None, suffix: str | None
) -> Iterator[Block]:
    at = 0
    while at < len(found):
        head = found[at]
        if head.plugin.type == "extractors":
            end = _end_of_set(found, at)
            chain = found[at : end + 1]
            yield SingerBlock(
                head.plugin.name,
                tuple(item.name for item in chain[1:-1]),
                chain[-1].plugin.name,
                None if environment is None else _state_id(model, environment, chain, suffix),
            )
            at = end + 1
        elif head.plugin.type in _SINGER:
            raise _refusal(field=f"blocks[{head.place}]", reason="a loader or mapper must follow an extractor")
        else:
            yield CommandBlock(head.plugin.name, head.command)
            at += 1


def _end_of_set(found: list[_Named], start: int) -> int:
    """The place of the loader that ends the set an extractor begins."""
    for step, item in enumerate(found[start + 1 :], start=1):
        field = f"blocks[{item.place}]"
        if item.plugin.type not in _CONSUMERS:
            raise _refusal(field, "an extractor must be followed by mappers and a loader")
        if item.plugin.type == "loaders":
            return start + step
        # Meltano compares with the name at `step` from the beginning of the run, not of the set. So a mapper's own
        # name passes in a later set, and then runs without a mapping's configuration.
        if found[step].plugin.type == "mappers" and found[step].name == item.plugin.name:
            raise _refusal(field, "name one of the mapper's mappings, not the mapper")
    raise _refusal(field=f"blocks[{found[start].place}]", reason="the extractor has no loader")


def _state_id(model: ProjectModel, environment: Environment, chain: list[_Named], suffix: str | None) -> str:
    by_environment = environment.state_id_suffix
    if by_environment and "$" in by_environment:
        by_environment = _expanded_suffix(model, environment, chain)
    last = suffix or model.run_suffix or by_environment
    parts = (environment.name, f"{chain[0].plugin.name}-to-{chain[-1].plugin.name}", last)
    if any(part and STATE_ID_DELIMITER in part for part in parts):
        raise _refusal(field="state_id_suffix", reason=f"must not contain '{STATE_ID_DELIMITER}'")
    return STATE_ID_DELIMITER.join(part for part in parts if part)


def _expanded_suffix(model: ProjectModel, environment: Environment, chain: list[_Named]) -> str:
    """The environment's suffix after Meltano has set up every plugin of the set.

    Meltano expands it in place, once for each plugin and each plugin it inherits from: what the first leaves behind (an
    escaped variable) the next one expands.
    """
    text = environment.state_id_suffix or ""
    for item in chain:
        for plugin in (*reversed(item.plugin.parents), item.plugin):
            values = {**model.suffix_variables, "MELTANO_ENVIRONMENT": environment.name}
            kind = "UTILITY" if plugin.type == "utilities" else plugin.type[:-1].upper()
            info = {"NAME": plugin.name, "NAMESPACE": plugin.namespace, "VARIANT": plugin.variant}
            values |= {f"MELTANO_{kind}_{key}": value for key, value in info.items() if value}
            values |= plugin.suffix_variables
            text = expand_variables(text, values)
    return text


def _refusal(field: str, reason: str, suggestions: Sequence[str] = ()) -> ValidationFailed:
    return ValidationFailed(f"{field}: {reason}", errors=(FieldError(field, reason),), suggestions=tuple(suggestions))
