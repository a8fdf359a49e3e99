//! The columns of `"TaskRun"` that Runwire reads: those that clients receive, in wire order, and
//! those that it routes by (`runs-and-auth.md`, 6.3).

/// How a column's text is written on the wire and named in the schema header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text, and enums by their label.
    Text,
    /// `timestamp(3)` without a zone, holding UTC.
    Timestamp,
    /// A four-byte integer.
    Int4,
    /// A double.
    Float8,
    /// A boolean.
    Bool,
    /// JSON.
    Jsonb,
    /// An array of text.
    TextArray,
}

macro_rules! columns {
    ($($variant:ident $name:literal $kind:ident,)*) => {
        /// A column of `"TaskRun"`. The first [`Column::EXPOSED`] go to clients, in this order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)] // each is the database's column of the same name
        pub enum Column { $($variant,)* }

        impl Column {
            /// Every column that Runwire reads.
            pub const ALL: [Column; Column::COUNT] = [$(Column::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = [$($name,)*].len();

            /// The column's name in the database and on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Column::$variant => $name,)* }
            }

            /// How its values are written.
            pub const fn kind(self) -> Kind {
                match self { $(Column::$variant => Kind::$kind,)* }
            }
        }
    };
}

columns! {
    Id "id" Text,
    TaskIdentifier "taskIdentifier" Text,
    CreatedAt "createdAt" Timestamp,
    UpdatedAt "updatedAt" Timestamp,
    StartedAt "startedAt" Timestamp,
    DelayUntil "delayUntil" Timestamp,
    QueuedAt "queuedAt" Timestamp,
    ExpiredAt "expiredAt" Timestamp,
    CompletedAt "completedAt" Timestamp,
    FriendlyId "friendlyId" Text,
    Number "number" Int4,
    IsTest "isTest" Bool,
    Status "status" Text,
    UsageDurationMs "usageDurationMs" Int4,
    CostInCents "costInCents" Float8,
    BaseCostInCents "baseCostInCents" Float8,
    Ttl "ttl" Text,
    Payload "payload" Text,
    PayloadType "payloadType" Text,
    Metadata "metadata" Text,
    MetadataType "metadataType" Text,
    Output "output" Text,
    OutputType "outputType" Text,
    RunTags "runTags" TextArray,
    Error "error" Jsonb,
    RealtimeStreams "realtimeStreams" TextArray,
    RuntimeEnvironmentId "runtimeEnvironmentId" Text,
    BatchId "batchId" Text,
}

impl Column {
    /// How many columns, counted from the first, clients may receive.
    pub const EXPOSED: usize = Column::RealtimeStreams as usize + 1;

    /// The column of this name, if Runwire reads it.
    pub fn named(name: &str) -> Option<Column> {
        Column::ALL.into_iter().find(|column| column.name() == name)
    }

    /// Whether a client may ask to leave the column out. Upstream reserves five; `updatedAt` is
    /// kept as well, since every client's parser demands it (`runs-and-auth.md`, 6.3).
    pub fn skippable(self) -> bool {
        use Column::*;
        !matches!(self, Id | TaskIdentifier | FriendlyId | Status | CreatedAt | UpdatedAt)
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// A set of columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ColumnSet(u32);

impl ColumnSet {
    /// No column.
    pub const EMPTY: ColumnSet = ColumnSet(0);
    /// All that clients may receive.
    pub const EXPOSED: ColumnSet = ColumnSet((1 << Column::EXPOSED) - 1);

    /// All that Runwire reads.
    pub const ALL: ColumnSet = ColumnSet((1 << Column::COUNT) - 1);

    /// All exposed columns but those named that may be left out; unknown names are ignored.
    pub fn without<'a>(skipped: impl IntoIterator<Item = &'a str>) -> ColumnSet {
        let mut set = ColumnSet::EXPOSED;
        for column in skipped.into_iter().filter_map(|name| Column::named(name.trim())) {
            if column.skippable() {
                set.0 &= !column.bit();
            }
        }
        set
    }

    /// Whether the column is in the set.
    pub const fn contains(self, column: Column) -> bool {
        self.0 & column.bit() != 0
    }

    /// The set with this column.
    pub const fn with(self, column: Column) -> ColumnSet {
        ColumnSet(self.0 | column.bit())
    }

    /// Adds a column.
    pub fn insert(&mut self, column: Column) {
        self.0 |= column.bit();
    }

    /// Whether no column is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The columns in either set.
    pub const fn union(self, other: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 | other.0)
    }

    /// The columns in both sets.
    pub const fn intersection(self, other: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 & other.0)
    }

    /// The columns of this set that are not in the other.
    pub const fn difference(self, other: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 & !other.0)
    }

    /// The set as bits, the lowest for the first column.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The columns of the set, in wire order.
    pub fn iter(self) -> impl Iterator<Item = Column> {
        Column::ALL.into_iter().filter(move |column| self.contains(*column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_receive_26_columns_and_routing_needs_two_more() {
        assert_eq!(Column::EXPOSED, 26);
        assert_eq!(Column::COUNT, 28);
        assert!(!ColumnSet::EXPOSED.contains(Column::BatchId));
    }

    #[test]
    fn reserved_and_unknown_columns_cannot_be_skipped() {
        let set = ColumnSet::without(["payload", " output ", "id", "updatedAt", "nonsense"]);
        assert!(!set.contains(Column::Payload) && !set.contains(Column::Output));
        assert!(set.contains(Column::Id) && set.contains(Column::UpdatedAt));
        assert_eq!(set.iter().count(), 24);
    }
}
