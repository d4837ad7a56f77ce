"""Print a script that completes our command lines when TAB is pressed.

    python misc/completion.py bash > ~/.selfstudy-completion
    echo 'source ~/.selfstudy-completion' >> ~/.bashrc

The flags stand in the script; print it again when they have changed. Names of configurations,
parameters and experiments are looked up by the shell in the project whose script is typed, so
that TAB starts no Python.
"""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

# A file of the user's folder that is named like one of our modules must not win.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from selfstudy.experiment import rayconfig  # noqa: E402
from selfstudy.render.world import VARIANTS  # noqa: E402
from util.errors import reports_errors  # noqa: E402

SCRIPTS = (
    "main.py",
    "misc/completion.py",
    "misc/count_model_params.py",
    "misc/data.py",
    "misc/move_snapshots.py",
    "misc/pictures.py",
    "misc/render.py",
    "misc/results.py",
    "misc/save_network_output.py",
)
# What a flag or an argument takes, by argparse's name for it; of all others it is a file.
KINDS = {
    "gin_config": "gin",
    "gin_param": "param",
    "ray_config": "ray",
    "settings": "set",
    "exp_id": "exp",
    "experiments": "exp",
    "trial": "trial",
    "a": "trial",
    "b": "trial",
    "name": "dataset",
    "variant": f"={','.join(VARIANTS)}",
    "device": "=cpu,cuda",
    "data_amts": "=100,250,1000,4000,16000,50000,all",
}

HEAD = {
    "bash": "# Completion of selfstudy's command lines in bash: source it in ~/.bashrc.\n",
    "zsh": """\
# Completion of selfstudy's command lines in zsh: source it in ~/.zshrc.
autoload -Uz compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
""",
}

# Only what bash, and zsh as a bash, understand alike.
BODY = r"""
# The names of gin files or ray configs below a folder, one a line.
_selfstudy_below() {
    local name
    find "$1" -type f \( -name '*.gin' -o -name '*.py' \) 2>/dev/null |
        while IFS= read -r name; do
            name=${name#"$1/"}
            case $name in
            base/*) ;;
            *) printf '%s\n' "${name%.*}" ;;
            esac
        done
}

# The names of a kind, one a line: of files and folders below the project's folder $2.
_selfstudy_names() {
    local top name found
    case $1 in
    =*) printf '%s\n' "${1#=}" | tr ',' '\n' ;;
    set) printf '%s\n' @SETTINGS@ ;;
    param)
        sed -n 's/^| `\([A-Za-z_][A-Za-z0-9_]*\.[A-Za-z0-9_.]*\)` .*/\1=/p' \
            "$2/docs/reference/gin-parameters.md" 2>/dev/null ;;
    dataset)
        sed -n 's/^| dataset | //p' "$2/docs/reference/gin-parameters.md" 2>/dev/null |
            tr -cs 'A-Za-z0-9_' '\n' ;;
    gin | ray)
        _selfstudy_below "$2/config/$1"
        found=${SELFSTUDY_EXTRA:-}:
        while [ -n "$found" ]; do
            top=${found%%:*}
            found=${found#*:}
            [ -z "$top" ] || _selfstudy_below "$top/$1"
        done ;;
    exp | trial)
        top=${SELFSTUDY_EXP:-$2/exp}
        name=""
        case $1:$3 in trial:*/*) name=${3%/*}/ ;; esac
        find "$top/$name" -mindepth 1 -maxdepth 1 -type d ! -name '.*' 2>/dev/null |
            while IFS= read -r found; do printf '%s\n' "$name${found##*/}"; done ;;
    esac
}

# Sets for a command line: its flags, what they take, its arguments, its subcommands.
_selfstudy_tables() {
    flags="" takes="" places="" actions=""
    case $1 in
@TABLES@
    *) return 1 ;;
    esac
}

# Sets 'kind' to what a flag takes ('+' at its end: several), nothing for a switch.
_selfstudy_kind() {
    kind=""
    case $takes in *" $1:"*)
        kind=${takes#*" $1:"}
        kind=${kind%% *} ;;
    esac
}

_selfstudy() {
    local script root tool flags takes places actions kind raw cur front scope drop name
    local word last i
    local -a words
    COMPREPLY=()
    script=${COMP_WORDS[1]}
    case $script in '~/'*) script=$HOME/${script#??} ;; esac
    case /$script in
    */main.py) tool=main.py ;;
    */misc/*.py) tool=misc/${script##*/} ;;
    *) return 0 ;;
    esac
    root=./${script%"$tool"}
    case $script in /*) root=${script%"$tool"} ;; esac
    # Many projects have a main.py.
    [ "$COMP_CWORD" -gt 1 ] && [ -d "${root}config/gin" ] || return 0
    _selfstudy_tables "$tool" || return 0

    # Bash splits words at '='; here 'a', '=', 'b' is one word again.
    raw=${COMP_WORDS[COMP_CWORD]}
    words=()
    for ((i = 2; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [ "$i" -gt 2 ] && { [ "$word" = "=" ] || [ "${COMP_WORDS[i - 1]}" = "=" ]; }; then
            words[last]=${words[last]}$word
        else
            last=${#words[@]}
            words[last]=$word
        fi
    done
    [ "$raw" = "=" ] && raw=""
    cur=${words[last]}
    drop=${cur%"$raw"}  # what stays of the word: only the rest is replaced

    kind=""
    for ((i = 0; i < last; i++)); do
        word=${words[i]}
        case $word in
        --*=*) kind="" ;;
        -?*) _selfstudy_kind "$word" ;;
        *)
            case $kind in
            *+) ;;
            ?*) kind="" ;;
            *)
                case " $actions " in
                *" $word "*) _selfstudy_tables "$tool $word" ;;
                *)
                    case ${places%% *} in
                    *+) ;;
                    *) places=${places#"${places%% *}"} places=${places# } ;;
                    esac ;;
                esac ;;
            esac ;;
        esac
    done
    front=""
    case $cur in
    --*=*)
        front=${cur%%=*}=
        _selfstudy_kind "${front%=}"
        cur=${cur#*=} ;;
    -*) kind="=$flags" ;;
    *)
        [ -n "$kind" ] || kind=${places%% *}
        [ -n "$kind" ] || kind="=$flags" ;;
    esac
    kind=${kind%+}

    # An open quote is not part of the name, a gin scope not of the parameter's.
    case $cur in [\'\"]*) cur=${cur#?} ;; esac
    scope=""
    case $kind:$cur in param:*/*) scope=${cur%/*}/ ;; esac
    while IFS= read -r name; do
        # A stranger's folder may be called '$(...)', which the shell would run.
        case $name in *[!A-Za-z0-9._/=+,@%-]*) continue ;; esac
        name=$scope$name
        case $name in
        "$cur") ;;
        "$cur"*)
            name=$front$name
            COMPREPLY[${#COMPREPLY[@]}]=${name#"$drop"} ;;
        esac
    done <<END
$(_selfstudy_names "$kind" "${root%/}" "$cur")
END
    # No space after '=' or '.': the word continues.
    case $kind in
    param | set) type compopt >/dev/null 2>&1 && compopt -o nospace 2>/dev/null ;;
    esac
    return 0
}

complete -o bashdefault -o default -F _selfstudy python python3
"""


class _Asked(Exception):
    """Raised in place of parsing; its argument is the script's parser."""


def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser of one of our scripts, which runs until it reads its command line."""

    def ask(parser: argparse.ArgumentParser, *_, **__) -> None:
        raise _Asked(parser)

    class_: Any = argparse.ArgumentParser
    real = class_.parse_args
    class_.parse_args = ask
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except _Asked as asked:
        return asked.args[0]
    finally:
        class_.parse_args = real
    raise RuntimeError(f"{script} reads no command line")


def kind_of(action: argparse.Action) -> str:
    """What an argument takes, in the words of `_selfstudy_names`; '' for a switch."""
    if action.nargs == 0:
        return ""
    many = "+" if action.nargs in ("+", "*") else ""
    if action.choices:
        return f"={','.join(map(str, action.choices))}{many}"
    return KINDS.get(action.dest, "file") + many


def tables(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """The lines of `_selfstudy_tables` for a command line and its subcommands."""
    flags, takes, places, lines = [], [], [], []
    actions = ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions = " ".join(action.choices)
            places.append(f"={','.join(action.choices)}")
            for word, below in action.choices.items():
                lines += tables(f"{name} {word}", below)
        elif action.option_strings:
            flags += action.option_strings
            kind = kind_of(action)
            takes += [f"{flag}:{kind}" for flag in action.option_strings if kind]
        else:
            places.append(kind_of(action))
    own = {
        "flags": ",".join(flags),
        "takes": f" {' '.join(takes)} ",
        "places": " ".join(places),
        "actions": actions,
    }
    set_all = "\n        ".join(f"{key}='{text}'" for key, text in own.items() if text.strip())
    return [f"    '{name}')\n        {set_all} ;;", *lines]


def script(shell: str) -> str:
    """The whole script for a shell."""
    rows = [line for name in SCRIPTS for line in tables(name, parser_of(name))]
    entries = {key: value for key, value in rayconfig.DEFAULTS.items() if key != "config"}
    settings = " ".join(f"{key}{'.' if isinstance(value, dict) else '='}"
                        for key, value in entries.items())  # fmt: skip
    body = BODY.replace("@TABLES@", "\n".join(rows)).replace("@SETTINGS@", settings)
    return HEAD[shell] + body


@reports_errors
def main() -> None:
    """Print the script for the command line's shell."""
    parser = argparse.ArgumentParser(
        description="Print a script that completes our command lines.",
        epilog="bash: python misc/completion.py bash > FILE, and 'source FILE' in ~/.bashrc",
    )
    parser.add_argument("shell", choices=tuple(HEAD))
    print(script(parser.parse_args().shell), end="")


if __name__ == "__main__":
    main()
