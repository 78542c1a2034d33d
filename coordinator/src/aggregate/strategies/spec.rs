//! A strategy with its options as a task file gives it: read, checked, written, and asked how an update counts.
//! Which strategies there are is in the table of `strategies`; what each does, in its own file.

use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

use super::fedavg::FedAvg;
use super::{ClientTerms, Strategy, TABLE, names};
use crate::aggregate::fixed_point::{Contribution, MAX_COHORT};
use crate::aggregate::{AggregationError, UpdateFacts};

/// Most local steps that an update may claim.
const MAX_STEPS: u64 = 1 << 30;

/// A strategy with its options, as in a task file: `strategy = "fedavg"`, or a table `[strategy]` with `name` and the
/// strategy's options. Options that aren't given have their defaults; it is always one whose ranges were checked.
#[derive(Debug, Clone)]
pub struct StrategySpec {
    name: &'static str,
    options: Table,
    strategy: Arc<dyn Strategy>,
}

impl StrategySpec {
    /// A strategy by name, with the options that are given.
    ///
    /// # Errors
    /// A sentence: which name is unknown and which ones there are, or which option is unknown or out of which range.
    pub fn new(name: &str, options: Table) -> Result<StrategySpec, String> {
        let Some((name, build)) = TABLE.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = names().collect();
            return Err(format!("strategy {name:?} is not known; there are {}", known.join(", ")));
        };
        let (options, strategy) = build(options).map_err(|problem| format!("strategy {name}: {problem}"))?;
        Ok(StrategySpec { name, options, strategy })
    }

    /// Its name in task files.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// All its options, those that were not given with their defaults.
    pub fn options(&self) -> &Table {
        &self.options
    }

    /// What it does.
    pub fn strategy(&self) -> &dyn Strategy {
        self.strategy.as_ref()
    }

    /// What nodes do differently.
    pub fn client(&self) -> ClientTerms {
        self.strategy.client()
    }

    /// How much an update with these facts counts in the round's sums.
    ///
    /// # Errors
    /// [`AggregationError`] says which fact can't be used.
    pub fn contribution(&self, facts: &UpdateFacts) -> Result<Contribution, AggregationError> {
        let refused = |problem| AggregationError::Facts { strategy: self.name, problem };
        let stale = self.client().asynchronous.map_or(0, |buffer| buffer.max_staleness);
        if facts.staleness > stale {
            let problem = format!("its base is {} versions old, at most {stale} count", facts.staleness);
            return Err(refused(problem));
        }
        if !(1..=MAX_STEPS).contains(&facts.steps) {
            return Err(refused(format!("{} local steps: 1 to 2^30 count", facts.steps)));
        }
        let &UpdateFacts { learning_rate: rate, momentum, proximal_mu: mu, squared_norm, .. } = facts;
        let plan = rate > 0.0 && rate.is_finite() && (0.0..1.0).contains(&momentum) && mu >= 0.0 && mu.is_finite();
        let norm = squared_norm >= 0.0 && squared_norm.is_finite();
        if !plan || !norm {
            return Err(refused(format!(
                "learning_rate {rate}, momentum {momentum}, proximal_mu {mu} or ‖delta‖² {squared_norm} is impossible"
            )));
        }
        Contribution::new(facts.examples, self.strategy.shares(facts).map_err(refused)?)
    }

    /// The factors of the round's sums, from the facts of all updates that count.
    ///
    /// # Errors
    /// [`AggregationError`] says why these updates make no mean.
    pub(in crate::aggregate) fn factors(&self, facts: &[UpdateFacts]) -> Result<Vec<f64>, AggregationError> {
        match facts.len() {
            0 => return Err(AggregationError::Empty),
            n if n > MAX_COHORT => return Err(AggregationError::Cohort),
            _ => {}
        }
        self.strategy.factors(facts).map_err(|problem| AggregationError::Facts { strategy: self.name, problem })
    }
}

impl Default for StrategySpec {
    /// FedAvg.
    fn default() -> Self {
        StrategySpec { name: "fedavg", options: Table::new(), strategy: Arc::new(FedAvg::default()) }
    }
}

impl PartialEq for StrategySpec {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.options == other.options
    }
}

impl Serialize for StrategySpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.options.is_empty() {
            return serializer.serialize_str(self.name);
        }
        let mut map = serializer.serialize_map(Some(self.options.len() + 1))?;
        map.serialize_entry("name", self.name)?;
        for (key, value) in &self.options {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for StrategySpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SpecVisitor)
    }
}

struct SpecVisitor;

impl<'de> Visitor<'de> for SpecVisitor {
    type Value = StrategySpec;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a strategy's name, or a table with its name and its options")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<StrategySpec, E> {
        StrategySpec::new(name, Table::new()).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StrategySpec, A::Error> {
        let mut options = Table::deserialize(MapAccessDeserializer::new(map))?;
        match options.remove("name") {
            Some(Value::String(name)) => StrategySpec::new(&name, options).map_err(A::Error::custom),
            _ => Err(A::Error::custom("a table [strategy] needs the strategy's name: name = \"fedavg\"")),
        }
    }
}

/// Makes a strategy from its options; gives all its options as well.
pub(super) type Build = fn(Table) -> Result<(Table, Arc<dyn Strategy>), String>;

/// A strategy from its options, and all of its options.
pub(super) fn build<S>(options: Table) -> Result<(Table, Arc<dyn Strategy>), String>
where
    S: Strategy + Serialize + DeserializeOwned + 'static,
{
    let strategy: S = options.try_into().map_err(|e: toml::de::Error| e.to_string().trim().replace('\n', " "))?;
    strategy.check()?;
    let options = Table::try_from(&strategy).map_err(|e| e.to_string())?;
    Ok((options, Arc::new(strategy)))
}

#[cfg(test)]
mod tests {
    use super::super::MAX_ARRAYS;
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        strategy: StrategySpec,
    }

    fn parse(text: &str) -> Result<StrategySpec, String> {
        toml::from_str::<File>(text).map(|file| file.strategy).map_err(|e| e.to_string())
    }

    #[test]
    fn a_name_alone_gives_the_strategy_with_its_defaults() {
        for name in names() {
            let spec = parse(&format!("strategy = {name:?}")).unwrap();
            assert_eq!(spec.name(), name);
            assert_eq!(spec, parse(&format!("[strategy]\nname = {name:?}")).unwrap());
        }
        assert_eq!(StrategySpec::default(), parse("strategy = \"fedavg\"").unwrap());
    }

    #[test]
    fn a_table_gives_options_and_the_rest_have_their_defaults() {
        let spec = parse("[strategy]\nname = \"fedadam\"\nserver_learning_rate = 1\nbeta2 = 0.999").unwrap();
        let option = |key: &str| spec.options().get(key).and_then(Value::as_float);
        assert_eq!(option("server_learning_rate"), Some(1.0));
        assert_eq!(option("beta1"), Some(0.9));
        assert_eq!(option("beta2"), Some(0.999));
        assert_ne!(spec, parse("strategy = \"fedadam\"").unwrap());
    }

    #[test]
    fn what_is_written_is_read_again_from_toml_and_json() {
        for name in names() {
            let file = File { strategy: StrategySpec::new(name, Table::new()).unwrap() };
            assert_eq!(toml::from_str::<File>(&toml::to_string(&file).unwrap()).unwrap(), file);
            assert_eq!(serde_json::from_str::<File>(&serde_json::to_string(&file).unwrap()).unwrap(), file);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = parse("strategy = \"fedsgd\"").unwrap_err();
        assert!(error.contains("fedsgd") && names().all(|name| error.contains(name)), "{error}");
        assert!(parse("[strategy]\nbeta1 = 0.9").unwrap_err().contains("name"));
        assert!(parse("strategy = 3").unwrap_err().contains("a strategy's name"));
    }

    #[test]
    fn an_unknown_option_and_one_of_a_wrong_type_are_refused_by_name() {
        for name in names() {
            let error = parse(&format!("[strategy]\nname = {name:?}\nbeta7 = 0.9")).unwrap_err();
            assert!(error.contains("beta7") && error.contains(name), "{error}");
        }
        let error = parse("[strategy]\nname = \"fedbuff\"\nbuffer_size = \"ten\"").unwrap_err();
        assert!(error.contains("buffer_size"), "{error}");
    }

    #[test]
    fn every_option_out_of_range_is_refused_by_name() {
        for (name, key, values) in [
            ("fedprox", "mu", ["-0.1", "1001.0", "nan"]),
            ("fedavgm", "server_learning_rate", ["0.0", "-1.0", "nan"]),
            ("fedavgm", "momentum", ["1.0", "-0.1", "nan"]),
            ("fedadagrad", "server_learning_rate", ["0.0", "inf", "nan"]),
            ("fedadagrad", "beta1", ["1.0", "-0.1", "nan"]),
            ("fedadagrad", "tau", ["0.0", "2.0", "nan"]),
            ("fedadam", "server_learning_rate", ["0.0", "1e4", "nan"]),
            ("fedadam", "beta1", ["1.0", "-0.1", "nan"]),
            ("fedadam", "beta2", ["1.0", "-0.1", "nan"]),
            ("fedadam", "tau", ["0.0", "2.0", "nan"]),
            ("fedyogi", "server_learning_rate", ["0.0", "1e4", "nan"]),
            ("fedyogi", "beta1", ["1.0", "-0.1", "nan"]),
            ("fedyogi", "beta2", ["1.0", "-0.1", "nan"]),
            ("fedyogi", "tau", ["0.0", "2.0", "nan"]),
            ("scaffold", "server_learning_rate", ["0.0", "1e4", "nan"]),
            ("q-fedavg", "q", ["-1.0", "11.0", "nan"]),
            ("q-fedavg", "largest_loss", ["0.0", "1001.0", "nan"]),
            ("fedbuff", "buffer_size", ["0", "4097", "-1"]),
            ("fedbuff", "server_learning_rate", ["0.0", "1e4", "nan"]),
            ("fedbuff", "staleness_exponent", ["-0.5", "11.0", "nan"]),
            ("fedbuff", "max_staleness", ["-1", "10001", "1.5"]),
        ] {
            for value in values {
                let error = parse(&format!("[strategy]\nname = {name:?}\n{key} = {value}")).unwrap_err();
                assert!(error.contains(key), "{name} {key} = {value}: {error}");
            }
        }
    }

    #[test]
    fn no_strategy_has_more_sums_or_arrays_than_a_step_can_hold() {
        for name in names() {
            let spec = StrategySpec::new(name, Table::new()).unwrap();
            let state = spec.strategy().state();
            assert!((1..=MAX_ARRAYS).contains(&spec.strategy().sums()) && state.len() <= MAX_ARRAYS);
            assert!(state.windows(2).all(|pair| pair[0].name != pair[1].name));
        }
    }
}
