//! `crafter serve --socket PATH`: what is at the path already, and who may connect.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, symlink},
        net::{UnixDatagram, UnixListener},
    },
    path::Path,
};

use crafter::lab::Lab;
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::{Done, command, lab, run};

type Put = fn(&Path) -> Option<Box<dyn Send>>;

/// Runs the service, which ends by itself when it is idle.
fn serve(lab: &Lab, socket: &Path, options: &[&str]) -> Done {
    let mut command = command(lab, &["serve", "--idle", "0.01", "--socket"]);
    command.arg(socket).args(options);
    run(command)
}

#[test]
fn only_its_own_stale_socket_is_replaced() {
    let rows: [(&str, Put); 6] = [
        ("a regular file", |path| {
            fs::write(path, "kept").unwrap();
            None
        }),
        ("a symbolic link", |path| {
            let target = path.with_extension("target");
            drop(UnixListener::bind(&target).unwrap());
            symlink(target, path).unwrap();
            None
        }),
        ("a FIFO", |path| {
            mkfifo(path, Mode::S_IRWXU).unwrap();
            None
        }),
        ("a directory", |path| {
            fs::create_dir(path).unwrap();
            None
        }),
        ("a socket of another type", |path| Some(Box::new(UnixDatagram::bind(path).unwrap()))),
        ("another service is listening", |path| Some(Box::new(UnixListener::bind(path).unwrap()))),
    ];
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    for (at, (what, put)) in rows.into_iter().enumerate() {
        let path = directory.path().join(at.to_string());
        let _held = put(&path);
        let before = fs::symlink_metadata(&path).unwrap();
        serve(&lab, &path, &["--everybody"]).fails(2, what);
        let after = fs::symlink_metadata(&path).unwrap();
        assert_eq!(after.file_type(), before.file_type(), "{what}");
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&after), std::os::unix::fs::MetadataExt::ino(&before), "{what}");
    }
    // The control: a stale socket of the same user.
    let path = directory.path().join("stale");
    drop(UnixListener::bind(&path).unwrap());
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    serve(&lab, &path, &["--everybody"]).succeeds();
    assert!(!path.exists(), "the service removes its socket when it ends");
}

/// With the four capabilities and no CAP_CHOWN, root is not a member of every group.
#[test]
fn group_that_cannot_be_given_leaves_no_socket() {
    let (lab, directory) = (lab(), tempfile::tempdir().unwrap());
    let socket = directory.path().join("socket");
    let start = |groups: &[&str]| {
        let capabilities = "-all,+net_admin,+net_raw,+bpf,+perfmon";
        let mut command = lab.command("setpriv");
        command.args(groups).args([format!("--bounding-set={capabilities}"), "--inh-caps=-all".to_owned()]);
        command.arg(env!("CARGO_BIN_EXE_crafter")).args(["serve", "--idle", "0.01", "--group", "54321", "--socket"]);
        command.arg(&socket);
        run(command)
    };
    let done = start(&["--clear-groups"]);
    done.fails(2, "may not give its socket to group 54321");
    done.fails(2, "CAP_CHOWN");
    assert!(!socket.exists(), "{done:?}");
    // The control: a member of the group may.
    start(&["--groups=54321"]).succeeds();
}
