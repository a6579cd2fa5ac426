"""Tab completion of commands, groups, options and their values, for bash and zsh.

Hydra's own scripts call the program without a command. These pass the typed line to
`blockspike completion query`, which composes the configuration without loading PyTorch.
"""

from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from blockspike.files import CONF

_BASH = r"""_blockspike() {
    local line="${COMP_LINE:0:COMP_POINT}" word choice
    word="${line##* }"
    COMPREPLY=()
    while IFS= read -r choice; do
        # where "=" breaks words, bash replaces only what follows it
        if [[ $COMP_WORDBREAKS == *=* && $word == *=* ]]; then
            choice="${choice#"${word%=*}="}"
        fi
        [[ -n $choice ]] && COMPREPLY+=("$choice")
    done < <(blockspike completion query "$line" 2>/dev/null)
}
complete -o nospace -o default -F _blockspike blockspike"""

_ZSH = r"""(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_blockspike() {
    local -a choices
    choices=("${(@f)$(blockspike completion query "${words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    if [[ -n $choices[1] ]]; then
        compadd -Q -S '' -- "${choices[@]}"
    else
        compset -P '*='
        _files
    fi
}
compdef _blockspike blockspike"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH}
_FLAGS = ("--help ", "--cfg job ", "-m ")


def candidates(commands: tuple[str, ...], line: str) -> list[str]:
    """Completions of a line's last word; a complete word ends with a space.

    Args:
        commands: names of the commands.
        line: the line up to the cursor, including the program's name.
    """
    _, *words = line.split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    last = words[-1] if words else ""
    if len(words) < 2:
        return [f"{name} " for name in commands if name.startswith(last)]
    command, *arguments = words
    if command not in commands:
        return []
    if command == "search":
        if len(arguments) == 1:
            names = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))
            return [f"{name} " for name in names if name.startswith(last)]
        command, *arguments = "train", *arguments[1:]
    if last.startswith("-"):
        return [flag for flag in _FLAGS if flag.startswith(last)]
    try:
        found = _of_hydra(command, " ".join(arguments))
    except Exception:  # the unfinished line does not compose; completion stays silent
        return []
    unused = _groups() - _groups_of(command) | {"hydra"}
    found = [x for x in found if x.partition("=")[0].strip("+~/.") not in unused]
    found = [x for x in found if not x.endswith("schema")]  # internal names, not choices
    return [x if x.endswith(("=", ".", "/")) else f"{x} " for x in found]


def _of_hydra(command: str, line: str) -> list[str]:
    _store_empty_schemas()
    with initialize_config_dir(config_dir=str(CONF.resolve()), version_base="1.3"):
        query = BashCompletion(GlobalHydra.instance().config_loader())
        return [str(x) for x in query._query(config_name=command, line=line)]


def _store_empty_schemas() -> None:
    """Register empty schemas: the real ones are derived from classes that need PyTorch."""
    store = ConfigStore.instance()
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        for default in _defaults(path):
            if isinstance(default, str) and default.endswith("schema"):
                store.store(name=default, node={}, group=None if group == "." else group)


def _groups() -> set[str]:
    return {path.name for path in CONF.iterdir() if path.is_dir()}


def _groups_of(command: str) -> set[str]:
    named = _defaults(CONF / f"{command}.yaml")
    return {group for default in named if isinstance(default, dict) for group in default}


def _defaults(path: Path) -> list[str | dict[str, str]]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
