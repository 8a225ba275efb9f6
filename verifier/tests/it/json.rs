//! Strict JSON and base64url.

use countersign_verifier::base64url::{self, NotBase64Url};
use countersign_verifier::json::{JsonError, MAX_DEPTH, MemberError, Object, parse_object};

fn object(text: &str) -> Object {
    parse_object(text.as_bytes()).unwrap()
}

#[test]
fn only_one_object_and_nothing_after_it_is_accepted() {
    for text in ["{}", " {} ", "{\"a\":[1,2.5,-3,\"x\",null,true,{}]}\r\n\t"] {
        assert!(parse_object(text.as_bytes()).is_ok(), "{text}");
    }
    for text in [
        "",
        " ",
        "{",
        "{}{}",
        "{} x",
        "{},",
        "\u{feff}{}",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
    ] {
        assert_eq!(
            parse_object(text.as_bytes()),
            Err(JsonError::Syntax),
            "{text}"
        );
    }
    for text in [
        r#"{"a":"\ud800"}"#,
        "{\"a\":\"\n\"}",
        "{\"a\":\"\0\"}",
        "{}\0",
        "// x\n{}",
    ] {
        assert_eq!(
            parse_object(text.as_bytes()),
            Err(JsonError::Syntax),
            "{text}"
        );
    }
    for text in ["null", "[]", "1", "\"{}\"", "true"] {
        assert_eq!(
            parse_object(text.as_bytes()),
            Err(JsonError::NotAnObject),
            "{text}"
        );
    }
    assert_eq!(parse_object(b"{\"a\":\"\xff\"}"), Err(JsonError::NotUtf8));
    assert_eq!(
        parse_object(b"{\"a\":\"\xc0\xaf\"}"),
        Err(JsonError::NotUtf8)
    );
    assert_eq!(
        parse_object(b"{\"a\":\"\xed\xa0\x80\"}"),
        Err(JsonError::NotUtf8)
    );
}

#[test]
fn a_name_is_said_once_at_every_level() {
    for text in [
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"b":2,"a":null}"#,
        r#"{"a":1,"\u0061":1}"#,
        r#"{"x":{"a":1,"a":1}}"#,
        r#"{"x":[[{"a":1,"a":1}]]}"#,
        r#"{"":1,"":1}"#,
    ] {
        assert_eq!(
            parse_object(text.as_bytes()),
            Err(JsonError::DuplicateMember),
            "{text}"
        );
    }
    for text in [
        r#"{"a":1,"A":1}"#,
        r#"{"a":{"a":{"a":1}}}"#,
        r#"{"a":[{"b":1},{"b":1}]}"#,
    ] {
        assert!(parse_object(text.as_bytes()).is_ok(), "{text}");
    }
}

#[test]
fn depth_is_limited() {
    let nested = |arrays: usize| format!("{{\"a\":{}{}}}", "[".repeat(arrays), "]".repeat(arrays));
    let most = usize::from(MAX_DEPTH) - 1;
    assert!(parse_object(nested(most).as_bytes()).is_ok());
    assert_eq!(
        parse_object(nested(most + 1).as_bytes()),
        Err(JsonError::TooDeep)
    );
    assert_eq!(
        parse_object(nested(100_000).as_bytes()),
        Err(JsonError::TooDeep)
    );
    assert_eq!(
        parse_object("{\"a\":".repeat(100_000).as_bytes()),
        Err(JsonError::TooDeep)
    );
}

#[test]
fn an_absent_member_is_none_and_a_wrong_one_is_an_error() {
    let object = object(r#"{"s":"x","n":1,"a":["x"],"mixed":["x",1],"null":null}"#);
    assert_eq!(object.string("s"), Ok(Some("x")));
    assert_eq!(object.string("absent"), Ok(None));
    assert_eq!(object.numeric_date("n"), Ok(Some(1)));
    assert_eq!(object.numeric_date("absent"), Ok(None));
    assert_eq!(object.strings("a"), Ok(Some(vec!["x"])));
    assert_eq!(object.strings("absent"), Ok(None));
    assert_eq!(object.array("mixed").unwrap().unwrap().len(), 2);
    let wrong = |name, expected| MemberError::WrongType { name, expected };
    assert_eq!(object.string("n"), Err(wrong("n", "a string")));
    assert_eq!(object.string("null"), Err(wrong("null", "a string")));
    assert_eq!(object.numeric_date("s"), Err(wrong("s", "a number")));
    assert_eq!(object.numeric_date("null"), Err(wrong("null", "a number")));
    assert_eq!(
        object.strings("mixed"),
        Err(wrong("mixed", "an array of strings"))
    );
    assert_eq!(object.strings("s"), Err(wrong("s", "an array of strings")));
    assert_eq!(object.array("s"), Err(wrong("s", "an array")));
    assert_eq!(wrong("s", "a number").to_string(), "`s` is not a number");
}

#[test]
fn base64url_is_unpadded_and_has_no_spare_bits() {
    for (bytes, text) in [
        (&b""[..], ""),
        (b"f", "Zg"),
        (b"fo", "Zm8"),
        (b"foo", "Zm9v"),
        (b"foob", "Zm9vYg"),
        (&[0xfb, 0xff, 0xbf], "-_-_"),
    ] {
        assert_eq!(base64url::encode(bytes), text);
        assert_eq!(base64url::decode(text).as_deref(), Ok(bytes));
    }
    for text in [
        "Zg==",
        "Zg=",
        "Zh",
        "Zm9",
        "Z",
        "+/+/",
        "Zm 9v",
        "Zm9v\n",
        "Zm9v.",
        "\u{ff21}A",
    ] {
        assert_eq!(base64url::decode(text), Err(NotBase64Url), "{text:?}");
    }
    let mut longer = "x.".to_owned();
    base64url::encode_into(b"foo", &mut longer);
    assert_eq!(longer, "x.Zm9v");
}
