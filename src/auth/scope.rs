//! What a credential may do: the scope grammar (`runs-and-auth.md` 13).

use std::fmt;

/// One thing that a request wants to touch: a type, and an id unless the whole type is meant.
///
/// The resources of each route are listed in `runs-and-auth.md` 13.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    kind: &'a str,
    id: Option<&'a str>,
}

impl<'a> Resource<'a> {
    /// All resources of a type, such as the whole list of runs. A scope with an id never covers it.
    pub const fn all(kind: &'a str) -> Self {
        Self { kind, id: None }
    }

    /// The one resource of this type with this id.
    pub const fn one(kind: &'a str, id: &'a str) -> Self {
        Self { kind, id: Some(id) }
    }
}

/// What the bearer of a credential is allowed to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Everything: a root key, or an additional key with the scope `admin`.
    Full,
    /// What these scopes grant and nothing else; no scopes grant nothing.
    Scoped(Vec<Scope>),
}

impl Ability {
    /// The ability that a list of scope texts gives. Texts that mean nothing grant nothing.
    pub fn from_scopes<S: AsRef<str>>(scopes: impl IntoIterator<Item = S>) -> Self {
        Self::Scoped(scopes.into_iter().map(|text| Scope::parse(text.as_ref())).collect())
    }

    /// Whether `action` is allowed on at least one of `resources` (`runs-and-auth.md` 13).
    ///
    /// An empty list is refused to everybody but [`Ability::Full`]. The answer says nothing about
    /// whether the resource exists, nor in which environment: the caller checks that first.
    pub fn can(&self, action: &str, resources: &[Resource<'_>]) -> bool {
        match self {
            Self::Full => true,
            Self::Scoped(scopes) => resources
                .iter()
                .any(|resource| scopes.iter().any(|scope| scope.grants(action, resource))),
        }
    }

    /// Whether whoever has this may pass `scope` on (`runs-and-auth.md` 17.3). What means nothing is
    /// passed on by [`Ability::Full`] alone.
    pub fn covers(&self, scope: &Scope) -> bool {
        if *self == Ability::Full {
            return true;
        }
        let (action, kind, id) = scope.parts();
        let id = (!id.is_empty()).then_some(id);
        !action.is_empty() && !kind.is_empty() && self.can(action, &[Resource { kind, id }])
    }
}

/// One scope, `action[:type[:id]]`, taken apart.
///
/// Only the first two colons delimit, so an id may contain colons. There is no escaping, trimming or
/// folding of case. An empty type or id counts as absent.
#[derive(Clone, PartialEq, Eq)]
pub struct Scope {
    text: Box<str>,
    /// Where the action ends.
    action: usize,
    /// Where the type starts and ends; empty when there is none.
    kind: (usize, usize),
    /// Where the id starts; the text's end when there is none.
    id: usize,
}

impl Scope {
    /// Takes a scope apart. Every text is a scope, though many grant nothing.
    pub fn parse(text: &str) -> Self {
        let end = text.len();
        let action = text.find(':').unwrap_or(end);
        let kind_start = (action + 1).min(end);
        let kind_end = text[kind_start..].find(':').map_or(end, |at| kind_start + at);
        let id = (kind_end + 1).min(end);
        Self { text: text.into(), action, kind: (kind_start, kind_end), id }
    }

    /// Action, type and id; what is absent is empty.
    fn parts(&self) -> (&str, &str, &str) {
        let (action, kind) = (&self.text[..self.action], &self.text[self.kind.0..self.kind.1]);
        (action, kind, &self.text[self.id..])
    }

    fn grants(&self, action: &str, resource: &Resource<'_>) -> bool {
        if &*self.text == "admin" {
            return true;
        }
        let (own_action, kind, id) = self.parts();
        // An empty action never matches, not even a caller that asks for the empty action.
        if own_action.is_empty() || (own_action != action && own_action != "*") {
            return false;
        }
        if kind == "all" {
            return true;
        }
        if kind.is_empty() || kind != resource.kind {
            return false;
        }
        id.is_empty() || resource.id == Some(id)
    }

    /// Heap bytes that this scope holds, for the bound on remembered verdicts.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.text.len()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn can(scope: &str, resources: &[Resource<'_>]) -> bool {
        Ability::from_scopes([scope]).can("read", resources)
    }

    /// The feeds that the truth table's columns speak of.
    fn feeds() -> [(&'static str, Vec<Resource<'static>>); 8] {
        let run = |id, task| vec![Resource::one("runs", id), Resource::one("tasks", task)];
        let with = |mut base: Vec<Resource<'static>>, more: &[Resource<'static>]| {
            base.extend_from_slice(more);
            base
        };
        let list = || vec![Resource::all("runs"), Resource::all("tags")];
        let t = Resource::one("tags", "t");
        let b = Resource::one("batch", "batch_b");
        [
            ("run_x, task T", run("run_x", "T")),
            ("run_y, task U, tag t", with(run("run_y", "U"), &[t])),
            ("run_z, task U, tag u", with(run("run_z", "U"), &[Resource::one("tags", "u")])),
            ("run_w, task U, batch_b", with(run("run_w", "U"), &[b])),
            ("list without tags", list()),
            ("list of t and u", with(list(), &[t, Resource::one("tags", "u")])),
            ("batch_b", vec![b, Resource::all("runs")]),
            ("batch_c", vec![Resource::one("batch", "batch_c"), Resource::all("runs")]),
        ]
    }

    /// `runs-and-auth.md` 14, a column per feed of [`feeds`].
    #[test]
    fn the_truth_table_of_the_contract_holds() {
        let table: &[(&str, &str)] = &[
            ("admin", "yyyy yy yy"),
            ("read:all", "yyyy yy yy"),
            ("*:all", "yyyy yy yy"),
            ("read:all:anything", "yyyy yy yy"),
            ("read:runs", "yyyy yy yy"),
            ("*:runs", "yyyy yy yy"),
            ("read:runs:", "yyyy yy yy"),
            ("read:runs:run_x", "ynnn nn nn"),
            ("read:tasks", "yyyy nn nn"),
            ("read:tasks:T", "ynnn nn nn"),
            ("read:tags", "nyyn yy nn"),
            ("read:tags:t", "nynn ny nn"),
            ("read:batch", "nnny nn yy"),
            ("read:batch:batch_b", "nnny nn yn"),
            ("write:runs", "nnnn nn nn"),
            ("trigger:tasks:T", "nnnn nn nn"),
            ("write:inputStreams:run_x", "nnnn nn nn"),
            ("read:inputStreams:run_x", "nnnn nn nn"),
            ("read:sessions:session_s", "nnnn nn nn"),
            ("read", "nnnn nn nn"),
            ("admin:runs", "nnnn nn nn"),
            ("all", "nnnn nn nn"),
            ("", "nnnn nn nn"),
            (":runs", "nnnn nn nn"),
            ("read:", "nnnn nn nn"),
            ("read::run_x", "nnnn nn nn"),
            ("Read:runs", "nnnn nn nn"),
            ("read:runs ", "nnnn nn nn"),
            (" read:runs", "nnnn nn nn"),
            ("read:runs:run_", "nnnn nn nn"),
            ("read:runs:run_x2", "nnnn nn nn"),
            ("read:runs:*", "nnnn nn nn"),
            ("admin ", "nnnn nn nn"),
            ("*", "nnnn nn nn"),
        ];
        for (scope, row) in table {
            let wanted: Vec<_> = row.chars().filter(|c| *c != ' ').map(|c| c == 'y').collect();
            assert_eq!(wanted.len(), feeds().len());
            for ((feed, resources), wanted) in feeds().into_iter().zip(wanted) {
                assert_eq!(can(scope, &resources), wanted, "scope {scope:?} on {feed}");
            }
        }
        for (feed, resources) in feeds() {
            let none = Ability::from_scopes::<&str>([]);
            assert!(!none.can("read", &resources), "no scopes on {feed}");
            assert!(Ability::Full.can("read", &resources), "a root key on {feed}");
        }
    }

    #[test]
    fn only_the_first_two_colons_delimit() {
        assert!(can("read:tags:env:staging", &[Resource::one("tags", "env:staging")]));
        assert!(!can("read:tags:env:staging", &[Resource::one("tags", "env")]));
        assert!(can("read:tags::", &[Resource::one("tags", ":")]));
        assert!(!can("read:tags::", &[Resource::one("tags", "t")]));
    }

    #[test]
    fn an_empty_list_never_passes_a_scope() {
        assert!(!can("admin", &[]) && !can("read:all", &[]));
        assert!(!Ability::from_scopes([""]).can("", &[Resource::all("")]));
    }

    #[test]
    fn a_scope_is_passed_on_by_whoever_has_it_whole() {
        let held = Ability::from_scopes(["read:runs", "write:tags:a:b", "*:batch", "trigger"]);
        for (scope, wanted) in [
            ("read:runs", true),
            ("read:runs:", true),
            ("read:runs:run_x", true),
            ("write:tags:a:b", true),
            ("write:tags:a", false),
            ("write:tags", false),
            ("*:runs", false),
            ("*:batch", true),
            ("delete:batch:b", true),
            ("read:all", false),
            ("admin", false),
            ("read", false),
            ("trigger", false),
            (":batch", false),
            ("", false),
        ] {
            assert_eq!(held.covers(&Scope::parse(scope)), wanted, "{scope:?}");
            assert!(Ability::Full.covers(&Scope::parse(scope)));
        }
        let all = Ability::from_scopes(["read:all"]);
        assert!(all.covers(&Scope::parse("read:all")) && all.covers(&Scope::parse("read:x:y")));
        assert!(!all.covers(&Scope::parse("write:all")));
    }

    /// Texts of the grammar that have much to do with each other.
    fn texts() -> impl Strategy<Value = String> {
        let parts =
            ("(\\*|read|write|admin|)", "(|:|:all|:runs|:tags|:\\*)", "(|:|:a|:a:b|:all|:\\*)");
        parts.prop_map(|(action, kind, id)| format!("{action}{kind}{id}"))
    }

    proptest! {
        #[test]
        fn nobody_passes_on_more_than_he_has(
            held in prop::collection::vec(texts(), 0..4),
            wanted in texts(),
            action in "(\\*|read|write|admin)",
            kind in "(all|runs|tags|\\*)",
            id in prop::option::of("(a|a:b|all|\\*|other)"),
        ) {
            let held = Ability::from_scopes(held.into_iter().filter(|scope| scope != "admin"));
            let scope = Scope::parse(&wanted);
            let resource = Resource { kind: &kind, id: id.as_deref() };
            if held.covers(&scope) && scope.grants(&action, &resource) {
                prop_assert!(held.can(&action, &[resource]), "{held:?} made {wanted}");
            }
        }

        #[test]
        fn any_text_is_taken_apart_without_panic(scope in ".*", action in ".*", kind in ".*", id in ".*") {
            let resources = [Resource::all(&kind), Resource::one(&kind, &id)];
            let _ = Ability::from_scopes([scope]).can(&action, &resources);
        }

        #[test]
        fn a_scope_with_an_id_grants_that_id_alone(id in "[a-z:*\u{e9} ]{1,12}", other in "[a-z:*\u{e9} ]{1,12}") {
            let scope = format!("read:tags:{id}");
            prop_assert!(can(&scope, &[Resource::one("tags", &id)]));
            prop_assert_eq!(can(&scope, &[Resource::one("tags", &other)]), id == other);
            prop_assert!(!can(&scope, &[Resource::all("tags")]));
            prop_assert!(!can(&scope, &[Resource::one("runs", &id)]));
            prop_assert!(!Ability::from_scopes([&scope]).can("write", &[Resource::one("tags", &id)]));
        }
    }
}
