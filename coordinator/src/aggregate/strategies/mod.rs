//! The table of strategies. A new one has its file, and here its module and its line in the table.
//! What a strategy has to be is in `strategy`, how a task file gives one in `spec`.

mod adaptive;
mod fedadagrad;
mod fedadam;
mod fedavg;
mod fedavgm;
mod fedbuff;
mod fednova;
mod fedprox;
mod fedyogi;
mod q_fedavg;
mod scaffold;
mod spec;
mod strategy;
#[cfg(test)]
mod tests;

pub use self::spec::StrategySpec;
use self::spec::{Build, build};
pub use self::strategy::{Buffer, ClientTerms, MAX_ARRAYS, StateArray, Step, Strategy};
use self::strategy::{require, require_rate};

/// Every strategy: its name in task files, and how it is made from its options.
const TABLE: &[(&str, Build)] = &[
    ("fedavg", build::<fedavg::FedAvg>),
    ("fedprox", build::<fedprox::FedProx>),
    ("fedavgm", build::<fedavgm::FedAvgM>),
    ("fedadagrad", build::<fedadagrad::FedAdagrad>),
    ("fedadam", build::<fedadam::FedAdam>),
    ("fedyogi", build::<fedyogi::FedYogi>),
    ("fednova", build::<fednova::FedNova>),
    ("scaffold", build::<scaffold::Scaffold>),
    ("q-fedavg", build::<q_fedavg::QFedAvg>),
    ("fedbuff", build::<fedbuff::FedBuff>),
];

/// The names that a task file can give.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}
