# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast completion`: what bash needs to complete a command line of holdfast, made from the registry."""

from __future__ import annotations

from collections.abc import Iterator

from appliance import registry
from appliance.cli.call import Call
from appliance.errors import HoldfastError
from appliance.exits import Exit
from appliance.registry import Argument, Kind, Verb

_FUNCTIONS = r"""
# Each line of COMPREPLY is one word that fits.
_holdfast_fit() {
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "${1// /$'\n'}" -- "$2"))
}

# What stands in the place of a value: names that the service knows, files, or one of some words.
_holdfast_value() {
    case $1 in
        file) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$2")) ;;
        directory) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$2")) ;;
        vm | host) _holdfast_fit "$(holdfast completion "$1" 2>/dev/null)" "$2" ;;
        verb) _holdfast_fit "${_holdfast_next[holdfast]} exit-codes" "$2" ;;
        words:*) _holdfast_fit "${1#words:}" "$2" ;;
    esac
}

_holdfast() {
    local current=${COMP_WORDS[COMP_CWORD]} verb=holdfast place=0 index=1 word value
    COMPREPLY=()
    # The verb is the longest of its names that the line begins with.
    while ((index < COMP_CWORD)); do
        word="$verb ${COMP_WORDS[index]}"
        [[ " ${_holdfast_next[$verb]-} " == *" ${COMP_WORDS[index]} "* ]] || break
        verb=$word
        index=$((index + 1))
    done
    if [[ -n ${_holdfast_next[$verb]-} && $index -eq $COMP_CWORD && $current != -* ]]; then
        # The beginning of verbs may be a verb too.
        _holdfast_value "${_holdfast_places["$verb 0"]-}" "$current"
        local own=("${COMPREPLY[@]}")
        _holdfast_fit "${_holdfast_next[$verb]}" "$current"
        COMPREPLY=("${own[@]}" "${COMPREPLY[@]}")
        return
    fi
    [[ -n ${_holdfast_options[$verb]-} ]] || return
    # What stands in this place: the value of an option, or the next of those that are given by their place.
    value=
    for (( ; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ -n $value ]]; then
            value=
        elif [[ $word == -* ]]; then
            value=${_holdfast_values["$verb $word"]-}
        else
            place=$((place + 1))
        fi
    done
    if [[ -n $value ]]; then
        _holdfast_value "$value" "$current"
    elif [[ $current == -* ]]; then
        _holdfast_fit "${_holdfast_options[$verb]}" "$current"
    else
        _holdfast_value "${_holdfast_places["$verb $place"]-}" "$current"
    fi
}

complete -F _holdfast holdfast
"""


def bash() -> str:
    """The script that bash sources."""
    title = "# bash completion of holdfast, made by: holdfast completion bash"
    return "\n".join([title, *_tables(), _FUNCTIONS.strip()])


def _tables() -> Iterator[str]:
    following: dict[str, list[str]] = {}
    options: dict[str, str] = {}
    values: dict[str, str] = {}
    places: dict[str, str] = {}
    for verb in registry.every():
        for name in verb.names:
            name = f"holdfast {name}"
            words = name.split()
            for number, word in enumerate(words[1:], 1):
                after = following.setdefault(" ".join(words[:number]), [])
                if word not in after:
                    after.append(word)
            options[name] = " ".join(_option_names(verb))
            values |= {f"{name} {way}": _kind(argument) for argument in verb.all_arguments if argument.is_option
                       and argument.kind is not Kind.FLAG for way in (argument.short, argument.name) if way}
            placed = [argument for argument in verb.arguments if not argument.is_option]
            places |= {f"{name} {number}": _kind(argument) for number, argument in enumerate(placed) if _kind(argument)}
    yield _table("_holdfast_next", {first: " ".join(after) for first, after in following.items()})
    yield _table("_holdfast_options", options)
    yield _table("_holdfast_values", values)
    yield _table("_holdfast_places", places)


def _table(name: str, entries: dict[str, str]) -> str:
    return "\n".join([f"declare -gA {name}=(", *(f'    ["{key}"]="{value}"' for key, value in entries.items()), ")"])


def _option_names(verb: Verb) -> Iterator[str]:
    for argument in verb.all_arguments:
        if argument.is_option:
            yield from filter(None, (argument.short, argument.name))
    yield "--help"


def _kind(argument: Argument) -> str:
    """What the functions above make of it; something that nothing is known about for a value that is free."""
    if argument.choices:
        return "words:" + " ".join(argument.choices)
    if argument.kind is Kind.PHRASE:
        return "vm" if argument.placeholder.startswith("[VM]") else "file"
    if argument.kind in (Kind.FILE, Kind.DIRECTORY, Kind.VM, Kind.HOST, Kind.VERB):
        return argument.kind.value
    return "any" if argument.is_option else ""


def _completion(call: Call) -> int:
    if call.args.what == "bash":
        call.screen.say(bash())
        return Exit.OK
    try:
        status = call.ask("status", timeout=1.0)
    except HoldfastError:
        return Exit.OK  # there is nothing to complete; a message would end up in the command line
    names = sorted(status["vms"]) if call.args.what == "vm" else [status["host"], status["peer"]["name"]]
    call.screen.say(" ".join(names))
    return Exit.OK


VERBS = (
    Verb(
        "completion", "what a shell needs to complete command lines",
        text="""bash prints a script; it is installed as /usr/share/bash-completion/completions/holdfast. vm and host
print the names that it offers, and nothing when the service does not answer.""",
        arguments=(Argument("what", "bash: the script; vm, host: names", choices=("bash", "vm", "host")),),
        examples=(("source <(holdfast completion bash)", "in this shell, at once"),),
        run=_completion, shell=False,
    ),
)
