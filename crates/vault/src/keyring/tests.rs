use super::*;

const HERE: Place<'_> = Place { table: "workspace_build_states", column: "state", row: "one" };

fn keyring(names: &[&str]) -> (Keyring, Vec<String>) {
    let keys: Vec<String> = names.iter().map(|it| new_key(it).unwrap()).collect();
    (keys.join(",").parse().unwrap(), keys)
}

#[test]
fn what_is_sealed_opens_for_its_place_and_for_no_other() {
    let (keyring, _) = keyring(&["a"]);
    let sealed = keyring.seal(HERE, b"state").unwrap();
    assert_eq!(keyring.open(HERE, &sealed).unwrap(), b"state");
    let elsewhere = [
        Place { row: "two", ..HERE },
        Place { column: "other", ..HERE },
        Place { table: "user_secrets", ..HERE },
    ];
    for place in elsewhere {
        assert_eq!(keyring.open(place, &sealed), Err(VaultError::Tampered("a".to_owned())));
    }
}

#[test]
fn nothing_of_the_value_shows_and_the_same_value_never_looks_the_same() {
    let (keyring, _) = keyring(&["a"]);
    let value = [b'x'; 100];
    let (first, second) =
        (keyring.seal(HERE, &value).unwrap(), keyring.seal(HERE, &value).unwrap());
    assert!(!first.value.windows(4).any(|it| it == b"xxxx"));
    assert_ne!(first.value, second.value);
    assert_ne!(first.data_key, second.data_key);
    assert_eq!((first.value.len(), first.data_key.len()), (116, 60));
}

#[test]
fn a_changed_bit_anywhere_is_noticed() {
    let (keyring, _) = keyring(&["a"]);
    let sealed = keyring.seal(HERE, b"state").unwrap();
    for index in 0..sealed.value.len() {
        let mut changed = sealed.clone();
        changed.value[index] ^= 1;
        assert!(keyring.open(HERE, &changed).is_err(), "value byte {index}");
    }
    for index in 0..sealed.data_key.len() {
        let mut changed = sealed.clone();
        changed.data_key[index] ^= 1;
        assert!(keyring.open(HERE, &changed).is_err(), "data key byte {index}");
    }
    for length in [0, 11, 12, 59] {
        let mut cut = sealed.clone();
        cut.data_key.truncate(length);
        assert!(keyring.open(HERE, &cut).is_err(), "data key of {length} bytes");
    }
}

#[test]
fn a_new_key_in_front_seals_while_the_old_one_opens_until_all_is_rotated() {
    let (old, keys) = keyring(&["old"]);
    let sealed = old.seal(HERE, b"state").unwrap();
    let new = new_key("new").unwrap();
    let both: Keyring = format!("{new},{}", keys[0]).parse().unwrap();
    assert_eq!(both.open(HERE, &sealed).unwrap(), b"state");

    let (key_id, data_key) = both.rotate(HERE, &sealed.key_id, &sealed.data_key).unwrap();
    assert_eq!(key_id, "new");
    let rotated = Sealed { key_id, data_key, value: sealed.value.clone() };
    let alone: Keyring = new.parse().unwrap();
    assert_eq!(alone.open(HERE, &rotated).unwrap(), b"state");
    assert_eq!(alone.open(HERE, &sealed), Err(VaultError::UnknownKey("old".to_owned())));
}

#[test]
fn another_key_of_the_same_name_does_not_open() {
    let (first, _) = keyring(&["a"]);
    let (second, _) = keyring(&["a"]);
    let sealed = first.seal(HERE, b"state").unwrap();
    assert_eq!(second.open(HERE, &sealed), Err(VaultError::Tampered("a".to_owned())));
}

#[test]
fn keys_that_are_none_are_refused_by_position_and_never_repeated() {
    let good = new_key("a").unwrap();
    let check = |text: &str, expected: KeyError| {
        let error = text.parse::<Keyring>().unwrap_err();
        assert_eq!(error, expected, "{text}");
        assert!(!error.to_string().contains("c2VjcmV0"), "{error}");
    };
    check("c2VjcmV0", KeyError::Shape(1));
    check(&format!("{good},:c2VjcmV0"), KeyError::Shape(2));
    check("a b:c2VjcmV0", KeyError::Shape(1));
    check(&format!("{}:c2VjcmV0", "n".repeat(65)), KeyError::Shape(1));
    check("b:c2VjcmV0", KeyError::Length(1));
    check("b:!", KeyError::Length(1));
    check(&format!("{good},{good}"), KeyError::Duplicate(2));
    let many: Vec<String> = (0..17).map(|it| new_key(&format!("k{it}")).unwrap()).collect();
    check(&many.join(","), KeyError::TooMany);
}

#[test]
fn without_keys_nothing_is_sealed() {
    for none in [Keyring::default(), " \n".parse().unwrap()] {
        assert!(none.is_empty());
        assert_eq!(none.current(), None);
        assert_eq!(none.seal(HERE, b"state"), Err(VaultError::NoKey));
    }
}

#[test]
fn a_keyring_shows_names_and_no_keys() {
    let (keyring, keys) = keyring(&["a", "b"]);
    assert_eq!(format!("{keyring:?}"), r#"["a", "b"]"#);
    assert_eq!(keyring.current(), Some("a"));
    assert!(keys[0].starts_with("a:"));
}
