//! The properties that must hold, each by a short name and in a sentence.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! properties {
    ($($name:ident $statement:literal)*) => {
        /// What must hold.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Property {
            $(#[doc = $statement] $name,)*
        }

        impl Property {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its short name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it says.
            pub const fn statement(self) -> &'static str {
                match self { $(Self::$name => $statement,)* }
            }
        }
    };
}

properties! {
    M1 "A process never restates itself lower, and once it has joined its boot is above every one that its name had."
    M2 "What a node believes of another moves only up, until it is reaped."
    M3 "Nobody believes an incarnation that its subject has not minted."
    M4 "Whoever is down or has left comes back only at a higher incarnation."
    M5 "Whoever was told of an incarnation holds at least that one."
    M6 "The incremental digest of a view is the one from scratch."
    M7 "Everybody in a view has lived in this cluster."
    M8 "Of two processes with one name, one gives way, and only one: never who is well and known to all."
    M9 "What a process says of itself at one incarnation is the same for everybody."
    M10 "A process refutes every accusation in the step that brings it."
    M13 "Nothing of one cluster gets into a view of another."
    M14 "Two views have the same digest if, and only if, they hold the same records."
    M15 "Everybody in a view is asked again and again whether it is there."
    M16 "What is sent keeps its limits, and reads back as the same bytes."
    M17 "Whatever others say of a process, its boots do not run out."
    L4 "The core agrees within its bound after chaos."
    L5 "A call that begins long after the core agreed is answered."
    L7 "The core stays agreed, and what happens in a moment ends."
    L8 "A process that leaves begins nothing more for others."
    L12 "A node in trouble accuses few of those who are well."
    L13 "No live member leaves the ring of a node that can reach it."
    R1 "A ring that was changed step by step is the one that is built from its members."
    R2 "Whoever has the same view has the same ring."
    R3 "A key changes its owner only if that one left, or the new one came."
    R4 "Once the core has agreed, everybody has the weight that it was given, and its share of the keys."
    R5 "Several owners of a key are different nodes, the owner first, whatever their number."
    R6 "On a ring is who can own keys, and nobody else."
    R8 "The views by which a process calls never get older, and their fences never lower."
    R9 "Once the core has agreed, all of it hold their keys under one fence."
    O3 "Once the core has agreed, every key has one owner, in every view, who is ready for it."
    F1 "Every call has one outcome, by its deadline."
    F2 "A call that may not run twice runs once at most."
    F3 "What is told as not executed never ran, and never will."
    F5 "A call takes two hops at most, and asks the owner that was named to it."
    F6 "Whoever runs a call owns its key by its own view; whoever refuses says who does."
    F7 "Nothing begins after its deadline, nor once it was cancelled."
    F8 "A caller gets the answer to its own call."
    F10 "What was begun is over or under way: as many calls, places and bytes as are held."
    F11 "While nodes only come and go in good order, no call of those who stay fails."
    F12 "Repeats stay within their share of the calls."
    F13 "Only who is full says so."
    F14 "Whoever is in trouble holds up no call between two who are well."
    F15 "Nothing is handed to a process that has answered nothing for long."
    F16 "A call ends neither before its time nor long after there is nothing to wait for."
    F17 "What breaks a limit, or is meant for another process, does not run."
    F18 "Nothing is passed over that its caller waits for."
    F19 "Whoever runs a key holds it under a higher fence than all before."
    O7 "A process that stood still runs nothing before it is confirmed."
    B1 "No more calls run at once than the limits allow."
    B2 "No process has more connections than it says, in all and to one node."
    B3 "No more dials are under way than the limit allows."
    B4 "What is remembered of callers is bounded, and forgotten in time."
    B5 "Who is gone is not listed for ever."
    H1 "Nobody is dialled or reached more often than the waits allow."
    H2 "After a dial that failed there is a wait, which grows and is kept."
    P1 "One connection a pair and class is left."
    P2 "Nobody lets strangers, itself or, going away, anybody in; who breaks the protocol is shown out."
    P4 "Whatever waits for a connection waits for something that will end."
    P5 "Connections are to one process of a node, and end with it."
    P6 "What is closed as a duplicate is one of two."
    P7 "A shared address is tried again, whoever answered there before."
    W1 "No node refuses a message of another."
    W2 "No node refuses a frame or a record of another."
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Property {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Property {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = Self::ALL.iter().find(|property| property.name() == name);
        known.copied().ok_or_else(|| serde::de::Error::custom(format!("there is no property {name}")))
    }
}

/// A count for every property.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts([u64; Property::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Property::ALL.len()])
    }
}

impl Counts {
    /// One more.
    pub fn count(&mut self, property: Property) {
        self.0[property as usize] += 1;
    }

    /// How many.
    pub fn of(&self, property: Property) -> u64 {
        self.0[property as usize]
    }

    /// All of another's, too.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// Those that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (Property, u64)> {
        Property::ALL.iter().map(|property| (*property, self.0[*property as usize])).filter(|(_, count)| *count > 0)
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Counts {
    /// Properties that are no more are passed over.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let held = BTreeMap::<String, u64>::deserialize(deserializer)?;
        Ok(Self(std::array::from_fn(|index| held.get(Property::ALL[index].name()).copied().unwrap_or(0))))
    }
}
