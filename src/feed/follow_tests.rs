use super::super::poll_tests::feeds_that_fold;
use super::super::tests::{row_of, tx};
use super::super::{FeedKey, Runs};
use super::*;
use crate::lease::Lease;
use crate::replication::change::Change;
use crate::runs::columns::ColumnSet;
use crate::runs::created::Floor;

/// What a client of the list of those with two tags is told at once when a run comes into it, of which
/// the stream leaves a column out.
fn told_at_once(unsent: Option<Column>) -> (Option<Step>, Position) {
    let (feed, feeds) = feeds_that_fold(Duration::ZERO);
    let tags = ["a".into(), "b".into()].into();
    let key = FeedKey::new("env_1".into(), Runs::Tagged { tags, window: Duration::from_secs(60) });
    let handle = Handle::issue(1, key.digest(ColumnSet::EXPOSED), Lsn(50));
    let filter = Filter::new(&key, Floor::default());
    let waiter = feed.waiters.join(key.topics()[0], Lease::default());
    let mut follow = Follow::from(handle, filter, Position::before(Lsn(50)));
    let mut new = row_of(&[
        (Column::Id, "id1"),
        (Column::FriendlyId, "run_1"),
        (Column::RuntimeEnvironmentId, "env_1"),
        (Column::CreatedAt, "2026-09-01 08:00:00"),
        (Column::RunTags, "{a,b}"),
    ]);
    unsent.into_iter().for_each(|column| new.set_unchanged(column));
    feed.apply(tx(1, 100, vec![Change::RunUpdated { new, old: None }]));
    let view = View { feed: key, columns: ColumnSet::EXPOSED, old_statuses: false };
    let step = follow.step_at_once(&feeds, &waiter, &view, Duration::ZERO, &mut None);
    (step, follow.seen())
}

#[tokio::test]
async fn what_takes_the_database_is_not_told_at_once_nor_passed_by() {
    for unsent in [Column::RunTags, Column::Payload] {
        let (step, seen) = told_at_once(Some(unsent));
        assert!(step.is_none(), "{unsent:?}");
        assert_eq!(seen, Position::before(Lsn(50)), "{unsent:?}");
    }
    let (step, seen) = told_at_once(None);
    assert!(matches!(step, Some(Step::End(Next::News(_)))));
    assert!(seen > Position::before(Lsn(50)));
}
