//! An interactive shell in the lab, with a marked prompt.
//!
//! Each shell reads the user's start-up files first, then a file that marks the prompt, which is in a file system of
//! the shell's own mount namespace.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Command,
};

use super::mounts::{Step, Steps, path};

/// Prefix of the prompt.
const MARK: &str = "(lab) ";

/// Directory of the start-up files: it exists on every host, and only statistics of file systems are hidden by the
/// mount.
const DIRECTORY: &str = "/proc/fs";

const NOTICE: &str = "crafter: the prompt of this shell is not marked: its start-up file cannot be mounted at /proc/fs \
                      (no mounts allowed); $CRAFTER_LAB_INTERFACE is set in the lab alone\n";

/// For all versions of bash; since 5.1, PROMPT_COMMAND may be an array.
const BASH: &str = r#"[ -r ~/.bashrc ] && . ~/.bashrc
__crafter_lab_prompt() {
    local status=$?
    case ${PS1-} in "(lab) "*) ;; *) PS1="(lab) ${PS1-}" ;; esac
    return $status
}
# After all commands that set the prompt.
if ((BASH_VERSINFO[0] > 5 || (BASH_VERSINFO[0] == 5 && BASH_VERSINFO[1] >= 1))); then
    PROMPT_COMMAND+=(__crafter_lab_prompt)
else
    PROMPT_COMMAND="${PROMPT_COMMAND:+$PROMPT_COMMAND$'\n'}__crafter_lab_prompt"
fi
"#;

/// zsh reads $ZDOTDIR/.zshenv, then $ZDOTDIR/.zshrc. The user's files see the user's ZDOTDIR, and may set it.
const ZSHENV: &str = r#"if (( ${+CRAFTER_LAB_ZDOTDIR} )); then
    export ZDOTDIR=$CRAFTER_LAB_ZDOTDIR
    unset CRAFTER_LAB_ZDOTDIR
else
    unset ZDOTDIR
fi
[[ -r ${ZDOTDIR-$HOME}/.zshenv ]] && source ${ZDOTDIR-$HOME}/.zshenv
(( ${+ZDOTDIR} )) && typeset -g __crafter_lab_zdotdir=$ZDOTDIR
ZDOTDIR=/proc/fs
"#;

const ZSHRC: &str = r#"if (( ${+__crafter_lab_zdotdir} )); then
    export ZDOTDIR=$__crafter_lab_zdotdir
    unset __crafter_lab_zdotdir
else
    unset ZDOTDIR
fi
[[ -r ${ZDOTDIR-$HOME}/.zshrc ]] && source ${ZDOTDIR-$HOME}/.zshrc
__crafter_lab_prompt() { [[ $PROMPT == "(lab) "* ]] || PROMPT="(lab) $PROMPT" }
# After all commands that set the prompt.
typeset -ga precmd_functions
precmd_functions+=(__crafter_lab_prompt)
"#;

/// POSIX shells expand $ENV and read the file of that name.
const SHRC: &str = r#"if [ -n "${CRAFTER_LAB_ENV-}" ]; then
    ENV=$CRAFTER_LAB_ENV
    eval "CRAFTER_LAB_ENV=\"$ENV\""
    [ -r "$CRAFTER_LAB_ENV" ] && . "$CRAFTER_LAB_ENV"
    unset CRAFTER_LAB_ENV
else
    unset ENV
fi
case ${PS1-} in "(lab) "*) ;; *) PS1="(lab) ${PS1-}" ;; esac
"#;

/// Runs after config.fish; the user's prompt sees the status of the last command.
const FISH: &str = "functions -c fish_prompt __crafter_lab_prompt; \
                    function __crafter_lab_status; return $argv[1]; end; \
                    function fish_prompt; set -l last $status; printf '(lab) '; __crafter_lab_status $last; \
                    __crafter_lab_prompt; end";

/// The command of a shell, and the steps that create its files, to be run after /proc is mounted. A shell that is not
/// interactive has no prompt and needs no files.
pub(super) fn prepare(program: &OsStr, is_interactive: bool) -> (Command, Option<Steps>) {
    let mut command = Command::new(program);
    if !is_interactive {
        return (command, None);
    }
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let below = |file: &str| Path::new(DIRECTORY).join(file);
    let files: &[(&str, &str)] = match name.as_str() {
        "bash" => {
            command.arg("--rcfile").arg(below("bashrc"));
            &[("bashrc", BASH)]
        }
        "zsh" => {
            set_and_save(&mut command, "ZDOTDIR", "CRAFTER_LAB_ZDOTDIR", DIRECTORY.into());
            &[(".zshenv", ZSHENV), (".zshrc", ZSHRC)]
        }
        "fish" => {
            command.args(["-C", FISH]);
            &[]
        }
        "sh" | "dash" | "ash" | "ksh" | "ksh93" | "mksh" | "yash" => {
            set_and_save(&mut command, "ENV", "CRAFTER_LAB_ENV", below("shrc").into());
            &[("shrc", SHRC)]
        }
        _ => {
            command.env("PS1", format!("{MARK}$ "));
            &[]
        }
    };
    let steps = (!files.is_empty()).then(|| {
        let files = files.iter().map(|(name, text)| Step::File { path: path(below(name)), content: (*text).into() });
        let steps = [Step::Tmpfs(path(DIRECTORY))].into_iter().chain(files).collect();
        Steps { steps, notice: NOTICE }
    });
    (command, steps)
}

/// Sets a variable, and saves its value in another one, from which the start-up file restores it.
fn set_and_save(command: &mut Command, variable: &str, saved: &str, value: OsString) {
    match std::env::var_os(variable) {
        Some(own) => command.env(saved, own),
        None => command.env_remove(saved),
    };
    command.env(variable, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_gets_its_files_and_arguments() {
        for (program, files, arguments) in
            [("/bin/bash", 1, 2), ("/usr/bin/zsh", 2, 0), ("dash", 1, 0), ("/usr/bin/fish", 0, 2), ("/opt/nu", 0, 0)]
        {
            let (command, steps) = prepare(program.as_ref(), true);
            let made = steps.map_or(0, |steps| steps.steps.len() - 1);
            assert_eq!((made, command.get_args().len()), (files, arguments), "{program}");
            let (command, steps) = prepare(program.as_ref(), false);
            assert!(steps.is_none() && command.get_args().len() == 0 && command.get_envs().len() == 0, "{program}");
        }
        for text in [BASH, ZSHENV, ZSHRC, SHRC, FISH] {
            assert!(text.contains(MARK) || text.contains(DIRECTORY));
        }
    }
}
