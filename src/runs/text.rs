//! One text form for a value, whether it came by SQL or by the stream (`runs-and-auth.md`, 6.4 and 6.6).

use std::borrow::Cow;

use super::columns::Kind;

/// The value as clients get it, from Postgres' text form of either source.
///
/// Timestamps become `YYYY-MM-DDTHH:MM:SS.mmm`, booleans `t` or `f`, arrays have every element
/// quoted (NULL elements, which no client can read, are left out). Other values stay as they are.
pub fn normalize(kind: Kind, text: &str) -> Cow<'_, str> {
    match kind {
        Kind::Timestamp => timestamp(text),
        Kind::Bool => Cow::Borrowed(if matches!(text, "t" | "true") { "t" } else { "f" }),
        Kind::TextArray => array(text),
        Kind::Text | Kind::Int4 | Kind::Float8 | Kind::Jsonb => Cow::Borrowed(text),
    }
}

fn timestamp(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    // `infinity` and years BC have another shape and pass as they are.
    let plain = text.is_ascii() && bytes.len() >= 19 && bytes[10] == b' ' && !text.ends_with("BC");
    let Some((seconds, fraction)) = plain.then(|| text.split_at(19)) else {
        return Cow::Borrowed(text);
    };
    let digits = fraction.strip_prefix('.').unwrap_or(fraction);
    if digits.len() > 3 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}T{}.{digits:0<3}", &seconds[..10], &seconds[11..]))
}

fn array(text: &str) -> Cow<'_, str> {
    if text == "{}" {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    out.push('{');
    for element in elements(text) {
        if out.len() > 1 {
            out.push(',');
        }
        out.push('"');
        for c in element.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    }
    out.push('}');
    Cow::Owned(out)
}

/// The elements of a one-dimensional array literal, unescaped, NULLs left out.
pub fn elements(literal: &str) -> Vec<String> {
    let inner = literal.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or("");
    let mut found = Vec::new();
    let mut chars = inner.chars().peekable();
    while chars.peek().is_some() {
        let mut element = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted => break,
                ',' if !quoted => break,
                '\\' => element.extend(chars.next()),
                c => element.push(c),
            }
        }
        if quoted {
            chars.next_if_eq(&',');
        }
        if quoted || element != "NULL" {
            found.push(element);
        }
    }
    found
}

/// Whether the array has this element.
pub fn has_element(literal: &str, element: &str) -> bool {
    if literal.contains(['"', '\\']) {
        return elements(literal).iter().any(|own| own == element);
    }
    // Without quotes every element stands there as it is.
    let inner = literal.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or("");
    !inner.is_empty() && element != "NULL" && inner.split(',').any(|own| own == element)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timestamps_get_three_digits_and_no_zone() {
        for (text, wire) in [
            ("2026-11-21 10:45:19.203", "2026-11-21T10:45:19.203"),
            ("2026-11-21 10:45:19.6", "2026-11-21T10:45:19.600"),
            ("2026-11-21 10:45:19", "2026-11-21T10:45:19.000"),
            ("infinity", "infinity"),
            ("0044-03-15 01:02:03.004 BC", "0044-03-15 01:02:03.004 BC"),
        ] {
            assert_eq!(normalize(Kind::Timestamp, text), wire);
        }
    }

    #[test]
    fn booleans_are_one_letter_from_either_source() {
        assert_eq!(normalize(Kind::Bool, "true"), "t");
        assert_eq!(normalize(Kind::Bool, "t"), "t");
        assert_eq!(normalize(Kind::Bool, "false"), "f");
    }

    #[test]
    fn every_array_element_is_quoted() {
        for (text, wire) in [
            ("{}", "{}"),
            ("{a,b}", r#"{"a","b"}"#),
            (
                r#"{a,"b c","d\"q","e,f","NULL",NULL,"back\\slash","{x}",""}"#,
                r#"{"a","b c","d\"q","e,f","NULL","back\\slash","{x}",""}"#,
            ),
        ] {
            assert_eq!(normalize(Kind::TextArray, text), wire);
        }
    }

    #[test]
    fn null_is_no_element_and_its_name_may_be_one() {
        let with_null = "{a,NULL,b}";
        assert!(!has_element(with_null, "NULL") && has_element(with_null, "b"));
        assert!(has_element(r#"{a,"NULL"}"#, "NULL") && !has_element("{}", ""));
    }

    #[test]
    fn a_text_that_is_cut_inside_of_a_character_passes_as_it_is() {
        let odd = " \u{b}\u{10000}A\u{800} 00\u{800}\u{10000}";
        assert_eq!(normalize(Kind::Timestamp, odd), odd);
    }

    proptest! {
        #[test]
        fn a_quoted_array_reads_back_and_is_its_own_normal_form(list in prop::collection::vec(".*", 0..6)) {
            let literal = array_literal(&list);
            prop_assert_eq!(elements(&literal), list);
            prop_assert_eq!(normalize(Kind::TextArray, &literal), literal.as_str());
        }

        #[test]
        fn an_array_has_its_elements_and_no_others(
            list in prop::collection::vec("[a-c]{1,2}|NULL|a b|", 0..5),
            element in "[a-c]{1,2}|NULL|a b|",
            quoted: bool,
        ) {
            // As Postgres writes them: quoted where they must be, or all.
            let must = |e: &str| quoted || e.is_empty() || e == "NULL" || e.contains(' ');
            let one = |e: &String| if must(e) { format!("\"{e}\"") } else { e.clone() };
            let literal = format!("{{{}}}", list.iter().map(one).collect::<Vec<_>>().join(","));
            prop_assert_eq!(has_element(&literal, &element), list.contains(&element));
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".*") {
            elements(&text);
            normalize(Kind::TextArray, &text);
            normalize(Kind::Timestamp, &text);
        }
    }

    fn array_literal(list: &[String]) -> String {
        let quoted: Vec<String> = list
            .iter()
            .map(|e| format!("\"{}\"", e.replace('\\', "\\\\").replace('"', "\\\"")))
            .collect();
        format!("{{{}}}", quoted.join(","))
    }
}
