use super::*;

#[test]
fn only_a_plugin_host_may_start_it() {
    let by_hand = check_host(&Environment::default()).expect_err("no host");
    assert!(by_hand.to_string().contains("only Terraform or OpenTofu can start it"));
    let wrong = Environment::from_iter([(COOKIE.0, "abc")]);
    assert!(check_host(&wrong).is_err());
    assert!(check_host(&Environment::from_iter([COOKIE])).is_ok());
}

#[test]
fn the_host_speaks_protocol_6() {
    for (versions, fine) in [("5,6", true), ("6", true), ("5", false), ("16,60", false)] {
        let env = Environment::from_iter([COOKIE, ("PLUGIN_PROTOCOL_VERSIONS", versions)]);
        assert_eq!(check_host(&env).is_ok(), fine, "{versions}");
    }
}

#[test]
fn the_handshake_has_six_fields() {
    let socket = Path::new("/tmp/x/socket");
    assert_eq!(handshake(socket, None), "1|6|unix|/tmp/x/socket|grpc|");
    assert_eq!(handshake(socket, Some(&[0xff, 0xfe])), "1|6|unix|/tmp/x/socket|grpc|//4");
}

#[tokio::test]
async fn the_socket_is_only_this_users_and_goes_with_its_directory() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().to_str().unwrap();
    let env = Environment::from_iter([("PLUGIN_UNIX_SOCKET_DIR", path)]);
    let socket = Socket::bind(&env).unwrap();
    assert!(socket.path.starts_with(parent.path()));
    let mode = socket.path.parent().unwrap().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(socket);
    assert_eq!(parent.path().read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn whoever_asks_first_ends_it_for_all() {
    let stop = Stop::new();
    let other = stop.clone();
    other.trigger();
    stop.triggered().await;
    other.triggered().await;
}
