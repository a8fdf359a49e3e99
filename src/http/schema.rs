//! The bodies of the minting routes, and what is wrong with them in the form that upstream's schema
//! library has (`runs-and-auth.md` 17.3, 17.4).

use serde_json::{Map, Value, json};

/// Everything that is wrong with a body; never empty.
pub type Issues = Vec<Value>;

/// The body of `/api/v1/auth/public-tokens`.
#[derive(Debug)]
pub struct Mint {
    /// At least one.
    pub scopes: Vec<String>,
    /// A text or a number.
    pub expiration: Option<Value>,
    /// Whether the token is for one use.
    pub one_time_use: bool,
    /// What the token's feeds are like.
    pub realtime: Option<Map<String, Value>>,
}

/// The body of `/api/v1/auth/jwt`.
#[derive(Debug)]
pub struct MintAny {
    /// The scopes, if any claims are named.
    pub scopes: Option<Vec<String>>,
    /// A text or a number.
    pub expiration: Option<Value>,
}

impl Mint {
    /// Reads the body; members that nobody knows are dropped.
    pub fn read(body: &Value) -> Result<Self, Issues> {
        let mut fields = Fields::of(body)?;
        let scopes = fields.texts(&["scopes"]);
        match &scopes {
            Some(scopes) if scopes.is_empty() => fields.too_short("scopes"),
            None if body.get("scopes").is_none() => fields.wrong("array", None, &["scopes"]),
            _ => {}
        }
        let expiration = fields.expiration();
        let one_time_use = fields.member("oneTimeUse", "boolean").and_then(Value::as_bool);
        let realtime = fields.realtime();
        let scopes = scopes.unwrap_or_default();
        fields.end(Mint { scopes, expiration, one_time_use: one_time_use == Some(true), realtime })
    }
}

impl MintAny {
    /// Reads the body; members that nobody knows are dropped.
    pub fn read(body: &Value) -> Result<Self, Issues> {
        let mut fields = Fields::of(body)?;
        let claims = fields.member("claims", "object").is_some();
        let scopes = if claims { fields.texts(&["claims", "scopes"]) } else { None };
        let expiration = fields.expiration();
        // Claims without scopes are claims with none.
        let scopes = claims.then(|| scopes.unwrap_or_default());
        fields.end(MintAny { scopes, expiration })
    }
}

/// A body that is taken apart, and what was wrong so far.
struct Fields<'a> {
    body: &'a Value,
    issues: Issues,
}

impl<'a> Fields<'a> {
    fn of(body: &'a Value) -> Result<Self, Issues> {
        let mut fields = Fields { body, issues: Vec::new() };
        if !body.is_object() {
            fields.wrong("object", Some(body), &[]);
            return Err(fields.issues);
        }
        Ok(fields)
    }

    fn end<T>(self, read: T) -> Result<T, Issues> {
        if self.issues.is_empty() { Ok(read) } else { Err(self.issues) }
    }

    /// The member, if it is there and of this kind.
    fn member(&mut self, name: &str, kind: &str) -> Option<&'a Value> {
        let value = self.body.get(name)?;
        if kind_of(value) != kind {
            self.wrong(kind, Some(value), &[name]);
            return None;
        }
        Some(value)
    }

    /// An array of texts, if it is there.
    fn texts(&mut self, path: &[&str]) -> Option<Vec<String>> {
        let value = path.iter().try_fold(self.body, |value, name| value.get(name))?;
        let Some(items) = value.as_array() else {
            self.wrong("array", Some(value), path);
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            match item.as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    let mut whole: Vec<Value> = path.iter().map(|name| json!(name)).collect();
                    whole.push(json!(at));
                    self.wrong_at("string", Some(item), whole);
                }
            }
        }
        Some(texts)
    }

    fn expiration(&mut self) -> Option<Value> {
        let value = self.body.get("expirationTime")?;
        if value.is_string() || value.is_number() {
            return Some(value.clone());
        }
        let issue = json!({
            "code": "invalid_union", "path": ["expirationTime"], "message": "Invalid input",
        });
        self.issues.push(issue);
        None
    }

    /// The members that a token's `realtime` may have: the columns to leave out, and our own
    /// `throttleMs`.
    fn realtime(&mut self) -> Option<Map<String, Value>> {
        let given = self.member("realtime", "object")?;
        let mut realtime = Map::new();
        if let Some(columns) = self.texts(&["realtime", "skipColumns"]) {
            realtime.insert("skipColumns".to_owned(), json!(columns));
        }
        if let Some(throttle) = given.get("throttleMs") {
            if !throttle.is_number() {
                self.wrong("number", Some(throttle), &["realtime", "throttleMs"]);
            }
            realtime.insert("throttleMs".to_owned(), throttle.clone());
        }
        Some(realtime)
    }

    fn too_short(&mut self, name: &str) {
        self.issues.push(json!({
            "code": "too_small", "minimum": 1, "type": "array", "inclusive": true, "exact": false,
            "message": "Array must contain at least 1 element(s)", "path": [name],
        }));
    }

    fn wrong(&mut self, expected: &str, found: Option<&Value>, path: &[&str]) {
        self.wrong_at(expected, found, path.iter().map(|name| json!(name)).collect());
    }

    fn wrong_at(&mut self, expected: &str, found: Option<&Value>, path: Vec<Value>) {
        let received = found.map_or("undefined", kind_of);
        let message = match found {
            None => "Required".to_owned(),
            Some(_) => format!("Expected {expected}, received {received}"),
        };
        self.issues.push(json!({
            "code": "invalid_type", "expected": expected, "received": received, "path": path,
            "message": message,
        }));
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn issues(body: Value) -> Vec<(Value, Value)> {
        let wrong = Mint::read(&body).expect_err("issues");
        wrong.iter().map(|issue| (issue["path"].clone(), issue["message"].clone())).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_named_with_its_path() {
        assert_eq!(issues(json!([])), [(json!([]), json!("Expected object, received array"))]);
        assert_eq!(issues(json!({})), [(json!(["scopes"]), json!("Required"))]);
        assert_eq!(
            issues(json!({"scopes": []})),
            [(json!(["scopes"]), json!("Array must contain at least 1 element(s)"))]
        );
        let all_wrong = json!({
            "scopes": ["a", 1], "expirationTime": true, "oneTimeUse": "yes",
            "realtime": {"skipColumns": "payload", "throttleMs": "1"},
        });
        let expected =
            |path, kind, found| (path, json!(format!("Expected {kind}, received {found}")));
        assert_eq!(
            issues(all_wrong),
            [
                expected(json!(["scopes", 1]), "string", "number"),
                (json!(["expirationTime"]), json!("Invalid input")),
                expected(json!(["oneTimeUse"]), "boolean", "string"),
                expected(json!(["realtime", "skipColumns"]), "array", "string"),
                expected(json!(["realtime", "throttleMs"]), "number", "string"),
            ]
        );
    }

    #[test]
    fn claims_may_be_absent_and_then_there_are_no_scopes() {
        let scopes = |body| MintAny::read(&body).map(|read| read.scopes);
        assert_eq!(scopes(json!({})), Ok(None));
        assert_eq!(scopes(json!({"claims": {}})), Ok(Some(vec![])));
        assert_eq!(scopes(json!({"claims": {"scopes": ["a"]}})), Ok(Some(vec!["a".to_owned()])));
        assert!(scopes(json!({"claims": {"scopes": [1]}})).is_err());
        assert!(scopes(json!({"claims": 1})).is_err());
    }

    proptest! {
        #[test]
        fn any_json_is_read_without_panic(text in r#"(\{|\[|"scopes"|"claims"|"realtime"|:|,|\]|\}|1|null|"a"){0,30}"#) {
            if let Ok(body) = serde_json::from_str(&text) {
                let _ = (Mint::read(&body), MintAny::read(&body));
            }
        }
    }
}
