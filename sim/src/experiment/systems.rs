//! How fast nodes are, who straggles, who vanishes: the virtual times of a round.
//! What a round makes of late and lost nodes is decided by the coordinator's `rounds::step`.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};

use super::random::{Purpose, stream};

/// The machines and the network of a simulation. Times are virtual.
#[derive(Debug, Clone, PartialEq)]
pub struct Systems {
    /// Median training speed, samples a second, above 0.
    pub speed: f64,
    /// σ of the speed's logarithm, 0 or more: 0 makes all nodes equal, 1 makes every sixth 2.7 times as slow.
    pub speed_sigma: f64,
    /// Share of a round's cohort that manages only 1 to E-1 of its E epochs by the deadline, uniformly drawn, `0.0..=1.0`
    /// (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, §5.2).
    pub stragglers: f64,
    /// Share of a round's cohort that vanishes during the round and is back for the next one, `0.0..=1.0`. In an
    /// asynchronous task such a node loses its assignment, and is asked again when that is overdue.
    pub dropouts: f64,
    /// Delay of each transfer, milliseconds.
    pub latency_ms: u64,
    /// Bytes a second of each node's link, both ways, above 0.
    pub bandwidth: f64,
    /// How long a vanished node is still waited for, milliseconds: the coordinator's liveness window.
    pub liveness_ms: u64,
}

impl Default for Systems {
    /// Equal nodes that take 1,000 samples a second over 10 Mbit/s, and the coordinator's default window.
    fn default() -> Systems {
        Systems {
            speed: 1000.0,
            speed_sigma: 0.0,
            stragglers: 0.0,
            dropouts: 0.0,
            latency_ms: 50,
            bandwidth: 1_250_000.0,
            liveness_ms: fedge_coordinator::config::Nodes::default().liveness_ms,
        }
    }
}

/// A number out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} is {value}; give {range}")]
pub struct SystemsError {
    /// Which.
    pub field: &'static str,
    /// What was given.
    pub value: f64,
    /// What is allowed.
    pub range: &'static str,
}

/// What befalls a node in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Lot {
    /// Nothing.
    Prompt,
    /// It manages this many epochs by the deadline, at least 0 and fewer than all.
    Straggles(u32),
    /// It vanishes when this share of its time is over, `0.0..1.0`.
    Vanishes(f64),
}

/// The size of a node's work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    /// Samples of an epoch.
    pub(super) samples: usize,
    /// Epochs that the plan asks for.
    pub(super) epochs: u32,
    /// Bytes that it fetches first; 0 where it has the version.
    pub(super) down: u64,
    /// Bytes of its update, at most.
    pub(super) up: u64,
}

/// When a node's work ends, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Schedule {
    /// Its update of so many epochs arrives.
    Arrives {
        /// Virtual time.
        at_ms: u64,
        /// Epochs that were trained.
        epochs: u32,
    },
    /// It is not done by the deadline.
    Late,
    /// The coordinator notices that it is gone.
    Vanishes {
        /// Virtual time.
        at_ms: u64,
    },
}

impl Systems {
    /// Checks every range.
    ///
    /// # Errors
    /// [`SystemsError`] names the field.
    pub fn check(&self) -> Result<(), SystemsError> {
        let require = |field, value: f64, holds: bool, range| {
            if holds { Ok(()) } else { Err(SystemsError { field, value, range }) }
        };
        let share = "a share from 0 to 1";
        require("speed", self.speed, (1e-3..=1e9).contains(&self.speed), "0.001 to 1000000000 samples a second")?;
        require("speed sigma", self.speed_sigma, (0.0..=5.0).contains(&self.speed_sigma), "0 to 5")?;
        require("stragglers", self.stragglers, (0.0..=1.0).contains(&self.stragglers), share)?;
        require("dropouts", self.dropouts, (0.0..=1.0).contains(&self.dropouts), share)?;
        require("latency", self.latency_ms as f64, self.latency_ms <= 3_600_000, "at most 3600000 ms")?;
        require("bandwidth", self.bandwidth, (1.0..=1e12).contains(&self.bandwidth), "1 to 1e12 bytes a second")
    }

    /// Each node's speed, samples a second: log-normal around the median.
    pub(super) fn speeds(&self, seed: u64, nodes: usize) -> Vec<f64> {
        let Ok(factor) = LogNormal::new(0.0, self.speed_sigma) else { return vec![self.speed; nodes] };
        let mut random = stream(seed, Purpose::Speed, 0, 0);
        (0..nodes).map(|_| self.speed * factor.sample(&mut random)).collect()
    }

    /// What befalls each of `cohort` nodes in a round: exactly the shares of stragglers and dropouts, rounded; which
    /// nodes they are, the seed and the round say.
    pub(super) fn lots(&self, seed: u64, round: u64, cohort: usize, epochs: u32) -> Vec<Lot> {
        let mut random = stream(seed, Purpose::Systems, round, 0);
        let mut order: Vec<usize> = (0..cohort).collect();
        order.shuffle(&mut random);
        let share = |part: f64| (cohort as f64 * part).round() as usize;
        let mut lots = vec![Lot::Prompt; cohort];
        let (vanishing, straggling) = (share(self.dropouts), share(self.stragglers));
        for (place, index) in order.into_iter().enumerate() {
            if let Some(lot) = lots.get_mut(index) {
                *lot = match place {
                    place if place < vanishing => Lot::Vanishes(unit(&mut random)),
                    place if place < vanishing + straggling => Lot::Straggles(partial_epochs(epochs, &mut random)),
                    _ => Lot::Prompt,
                };
            }
        }
        lots
    }

    /// What befalls a node that is asked on its own, without a cohort: each share is a probability.
    pub(super) fn lot(&self, seed: u64, number: u64, epochs: u32) -> Lot {
        let mut random = stream(seed, Purpose::Systems, number, 1);
        match unit(&mut random) {
            draw if draw < self.dropouts => Lot::Vanishes(unit(&mut random)),
            draw if draw < self.dropouts + self.stragglers => Lot::Straggles(partial_epochs(epochs, &mut random)),
            _ => Lot::Prompt,
        }
    }

    /// When a node is done that starts now, at `speed`, with `lot`. Where `partial` work counts, what is done by the
    /// deadline arrives just before it.
    pub(super) fn schedule(
        &self,
        now_ms: u64,
        deadline_ms: u64,
        load: Load,
        speed: f64,
        lot: Lot,
        partial: bool,
    ) -> Schedule {
        let transfer_ms = |bytes: u64| self.latency_ms as f64 + bytes as f64 / self.bandwidth * 1e3;
        let epoch_ms = load.samples as f64 / speed * 1e3;
        let overhead_ms = if load.down > 0 { transfer_ms(load.down) } else { 0.0 } + transfer_ms(load.up);
        // The first event at the deadline closes the round, so that whoever is to be in it comes before.
        let last_ms = deadline_ms.saturating_sub(1);
        let window_ms = last_ms.saturating_sub(now_ms) as f64;
        let whole_ms = overhead_ms + f64::from(load.epochs) * epoch_ms;
        let in_time = ((window_ms - overhead_ms) / epoch_ms).floor().max(0.0);
        let done = match lot {
            Lot::Vanishes(share) => {
                let gone_ms = now_ms as f64 + share * whole_ms.min(window_ms);
                return Schedule::Vanishes { at_ms: gone_ms as u64 + self.liveness_ms };
            }
            Lot::Straggles(epochs) => in_time.min(f64::from(epochs)),
            Lot::Prompt if whole_ms <= window_ms => {
                return Schedule::Arrives {
                    at_ms: (now_ms + whole_ms.ceil() as u64).min(last_ms),
                    epochs: load.epochs,
                };
            }
            Lot::Prompt => in_time,
        };
        let epochs = done.min(f64::from(load.epochs)) as u32;
        match partial && epochs >= 1 {
            true => Schedule::Arrives { at_ms: last_ms, epochs },
            false => Schedule::Late,
        }
    }

    /// Milliseconds until a node has fetched `down` bytes, evaluated `samples` samples and reported. A forward pass is
    /// reckoned as a third of a training step.
    pub(super) fn evaluation_ms(&self, samples: usize, down: u64, speed: f64) -> u64 {
        let fetch_ms = if down > 0 { self.latency_ms as f64 + down as f64 / self.bandwidth * 1e3 } else { 0.0 };
        (fetch_ms + samples as f64 / (3.0 * speed) * 1e3 + self.latency_ms as f64).ceil() as u64
    }
}

/// 1 to `epochs` - 1, uniformly; 0 where there is no such number.
fn partial_epochs(epochs: u32, random: &mut ChaCha8Rng) -> u32 {
    let choices = epochs.saturating_sub(1);
    (1 + (unit(random) * f64::from(choices)) as u32).min(choices)
}

/// `0.0..1.0`, from 53 bits.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { samples: 100, epochs: 10, down: 1000, up: 1000 };

    /// 10 ms a transfer of 1,000 bytes and 5 ms of latency each.
    fn systems() -> Systems {
        Systems { speed: 100.0, latency_ms: 5, bandwidth: 100_000.0, ..Systems::default() }
    }

    #[test]
    fn a_prompt_node_is_done_after_both_transfers_and_all_epochs() {
        let schedule = systems().schedule(1000, 60_000, LOAD, 100.0, Lot::Prompt, false);
        assert_eq!(schedule, Schedule::Arrives { at_ms: 1000 + 15 + 15 + 10_000, epochs: 10 });
        let held = Load { down: 0, ..LOAD };
        let schedule = systems().schedule(1000, 60_000, held, 100.0, Lot::Prompt, false);
        assert_eq!(schedule, Schedule::Arrives { at_ms: 1000 + 15 + 10_000, epochs: 10 });
    }

    #[test]
    fn a_node_that_is_too_slow_is_late_or_sends_the_epochs_that_it_managed() {
        let at = |partial| systems().schedule(0, 5_000, LOAD, 100.0, Lot::Prompt, partial);
        assert_eq!(at(false), Schedule::Late);
        assert_eq!(at(true), Schedule::Arrives { at_ms: 4_999, epochs: 4 });
    }

    #[test]
    fn a_straggler_manages_its_lot_by_the_deadline_whatever_its_speed() {
        let at = |speed, partial| systems().schedule(0, 60_000, LOAD, speed, Lot::Straggles(3), partial);
        assert_eq!(at(1e6, true), Schedule::Arrives { at_ms: 59_999, epochs: 3 });
        assert_eq!(at(1e6, false), Schedule::Late);
        assert_eq!(at(3.0, true), Schedule::Arrives { at_ms: 59_999, epochs: 1 });
    }

    #[test]
    fn a_vanished_node_is_missed_after_the_liveness_window() {
        let schedule = systems().schedule(0, 60_000, LOAD, 100.0, Lot::Vanishes(0.5), false);
        assert_eq!(schedule, Schedule::Vanishes { at_ms: 5_015 + 10_000 });
    }

    #[test]
    fn exactly_the_shares_straggle_and_vanish_and_every_number_of_epochs_is_drawn() {
        let systems = Systems { stragglers: 0.5, dropouts: 0.2, ..Systems::default() };
        let mut drawn = [0; 5];
        for round in 1..=40 {
            let lots = systems.lots(3, round, 10, 5);
            assert_eq!(lots, systems.lots(3, round, 10, 5));
            assert_eq!(lots.iter().filter(|lot| matches!(lot, Lot::Vanishes(_))).count(), 2);
            for lot in lots {
                if let Lot::Straggles(epochs) = lot {
                    drawn[epochs as usize] += 1;
                }
            }
        }
        assert_eq!(drawn.iter().sum::<i32>(), 200);
        assert_eq!(drawn[0], 0);
        assert!(drawn[1..].iter().all(|times| (30..70).contains(times)), "{drawn:?}");
        assert_ne!(systems.lots(3, 1, 10, 5), systems.lots(3, 2, 10, 5));
    }

    #[test]
    fn without_a_cohort_the_shares_are_probabilities() {
        let systems = Systems { stragglers: 0.5, dropouts: 0.2, ..Systems::default() };
        let lots: Vec<Lot> = (0..1000).map(|number| systems.lot(3, number, 5)).collect();
        let count = |kind: fn(&Lot) -> bool| lots.iter().filter(|lot| kind(lot)).count();
        assert!((160..240).contains(&count(|lot| matches!(lot, Lot::Vanishes(_)))));
        assert!((450..550).contains(&count(|lot| matches!(lot, Lot::Straggles(_)))));
    }

    #[test]
    fn one_epoch_can_not_be_done_in_part() {
        let systems = Systems { stragglers: 1.0, ..Systems::default() };
        assert!(systems.lots(1, 1, 3, 1).iter().all(|lot| *lot == Lot::Straggles(0)));
        assert_eq!(systems.schedule(0, 9_000, LOAD, 1e6, Lot::Straggles(0), true), Schedule::Late);
    }

    #[test]
    fn speeds_are_log_normal_around_the_median() {
        let systems = Systems { speed_sigma: 1.0, ..Systems::default() };
        let speeds = systems.speeds(1, 4001);
        let slower = speeds.iter().filter(|speed| **speed < 1000.0).count();
        let within = speeds
            .iter()
            .filter(|speed| (1000.0 / std::f64::consts::E..1000.0 * std::f64::consts::E).contains(*speed))
            .count();
        assert!((1850..2150).contains(&slower), "{slower}");
        assert!((0.66..0.71).contains(&(within as f64 / 4001.0)), "{within}");
        assert!(Systems::default().speeds(1, 9).iter().all(|speed| *speed == 1000.0));
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        for (systems, field) in [
            (Systems { speed: 0.0, ..Systems::default() }, "speed"),
            (Systems { speed_sigma: f64::NAN, ..Systems::default() }, "speed sigma"),
            (Systems { stragglers: 1.1, ..Systems::default() }, "stragglers"),
            (Systems { dropouts: -0.1, ..Systems::default() }, "dropouts"),
            (Systems { bandwidth: 0.0, ..Systems::default() }, "bandwidth"),
        ] {
            assert_eq!(systems.check().map_err(|e| e.field), Err(field));
        }
        assert_eq!(Systems::default().check(), Ok(()));
    }
}
