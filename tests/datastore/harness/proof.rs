//! That the judges are awake: on the very histories that they find nothing in, they find every mistake that is put in.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::{faults::Fault, history::History, verdict::Verdict};

/// How often each mistake was put in and found.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    found: BTreeMap<Fault, u64>,
    missed: Vec<Fault>,
}

impl Proof {
    /// Puts each mistake that there is a place for into a clean history, and looks whether it is found.
    pub fn try_all(&mut self, history: &History, rng: &mut Rng) {
        for fault in Fault::ALL {
            let Some(wrong) = fault.inject(history, rng) else { continue };
            if Verdict::of(&wrong).breaks(fault.breaks()) {
                *self.found.entry(fault).or_default() += 1;
            } else {
                self.missed.push(fault);
            }
        }
    }

    /// How many mistakes were found.
    pub fn found(&self) -> u64 {
        self.found.values().sum()
    }

    /// Mistakes that were put in and not found: none, or the judges sleep.
    pub fn missed(&self) -> &[Fault] {
        &self.missed
    }

    /// Mistakes that no history had a place for.
    pub fn untried(&self) -> Vec<Fault> {
        let tried = |fault: &Fault| self.found.contains_key(fault) || self.missed.contains(fault);
        Fault::ALL.into_iter().filter(|fault| !tried(fault)).collect()
    }
}
