//! Which parameters a training changes, and which of them travel between nodes and coordinator.
//! The classes that a file gives them are `classify`'s; values are moved by whoever holds them.

use std::ops::Range;
use std::sync::Arc;

use super::{Layout, ParameterClass, ParameterSpec};
use crate::ModelError;

/// Names that an error shows.
const SHOWN: usize = 8;

/// Which of a model's trainable parameters are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Each of them.
    All,
    /// Those whose name fits one of these patterns: `*` stands for any text, `?` for one character. A pattern that fits
    /// none is refused where it meets a model.
    Named(Arc<[String]>),
    /// Those of at most one axis: biases, and the scales and shifts of normalizations.
    BiasesAndNorms,
}

impl Selection {
    /// Whether a trainable parameter of this name and rank is one of them.
    pub fn takes(&self, name: &str, rank: usize) -> bool {
        match self {
            Selection::All => true,
            Selection::Named(patterns) => patterns.iter().any(|pattern| fits(pattern, name)),
            Selection::BiasesAndNorms => rank <= 1,
        }
    }

    /// Checks it against a model: each pattern has to fit a trainable parameter, and something has to be left.
    ///
    /// # Errors
    /// A sentence that names the pattern, and some of the parameters that there are.
    pub fn check(&self, layout: &Layout) -> Result<(), String> {
        let trainable = || layout.parameters().iter().filter(|spec| spec.class == ParameterClass::Trainable);
        if let Selection::Named(patterns) = self
            && let Some(pattern) = patterns.iter().find(|pattern| !trainable().any(|spec| fits(pattern, &spec.name)))
        {
            let known: Vec<&str> = trainable().take(SHOWN).map(|spec| spec.name.as_str()).collect();
            let known = known.join(", ");
            return Err(format!("names {pattern:?}, which fits no trainable parameter; among them are {known}"));
        }
        // Whether the file has anything to train, the graph says.
        if *self == Selection::All || trainable().any(|spec| self.takes(&spec.name, spec.shape.len())) {
            return Ok(());
        }
        Err("leaves no parameter to train; name more".to_owned())
    }
}

/// Which exchanged parameters travel in one task: what is trained, and the statistics that training moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What is trained.
    pub trained: Selection,
    /// Whether running means and variances move, and so travel.
    pub statistics: bool,
    /// Patterns of what moves and stays on its node all the same: a head of its own (Arivazhagan et al. 2019, FedPer), or
    /// normalizations of its own (Li et al. 2021, FedBN). None: nothing.
    pub local: Arc<[String]>,
}

impl Exchange {
    /// Whether this parameter travels.
    pub fn takes(&self, spec: &ParameterSpec) -> bool {
        self.moves(spec) && !self.is_local(spec)
    }

    /// Whether this parameter is trained on a node, and stays there.
    pub fn stays(&self, spec: &ParameterSpec) -> bool {
        self.moves(spec) && self.is_local(spec)
    }

    /// Checks it against a model: each pattern has to fit something that moves, and something has to travel.
    ///
    /// # Errors
    /// [`ModelError::Selection`] names the pattern, and some of the parameters that there are.
    pub fn check(&self, layout: &Layout) -> Result<(), ModelError> {
        let refused = |field| move |problem| ModelError::Selection { field, problem };
        self.trained.check(layout).map_err(refused("trained"))?;
        let moving = || layout.parameters().iter().filter(|spec| self.moves(spec));
        if let Some(pattern) = self.local.iter().find(|pattern| !moving().any(|spec| fits(pattern, &spec.name))) {
            let known: Vec<&str> = moving().take(SHOWN).map(|spec| spec.name.as_str()).collect();
            let known = known.join(", ");
            let problem = format!("names {pattern:?}, which fits nothing that is trained; among that are {known}");
            return Err(refused("local")(problem));
        }
        if moving().any(|spec| self.stays(spec)) && !moving().any(|spec| self.takes(spec)) {
            return Err(refused("local")("leaves nothing that travels; name less".to_owned()));
        }
        Ok(())
    }

    fn is_local(&self, spec: &ParameterSpec) -> bool {
        self.local.iter().any(|pattern| fits(pattern, &spec.name))
    }

    fn moves(&self, spec: &ParameterSpec) -> bool {
        match spec.class {
            ParameterClass::Trainable => self.trained.takes(&spec.name, spec.shape.len()),
            ParameterClass::Statistic => self.statistics,
            ParameterClass::Constant => false,
        }
    }
}

impl Layout {
    /// The same parameters, of which those that do not travel are constants: what updates of a task are laid out by.
    ///
    /// # Errors
    /// As [`Exchange::check`].
    pub fn exchanging(&self, exchange: &Exchange) -> Result<Layout, ModelError> {
        exchange.check(self)?;
        self.only(|spec| exchange.takes(spec))
    }

    /// As [`Layout::exchanging`], of what stays on a node; it may be nothing.
    ///
    /// # Errors
    /// As [`Exchange::check`].
    pub fn staying(&self, exchange: &Exchange) -> Result<Layout, ModelError> {
        exchange.check(self)?;
        self.only(|spec| exchange.stays(spec))
    }

    /// The same parameters, of which those that are not kept are constants.
    ///
    /// # Errors
    /// None: of a layout that is sound, this one is.
    pub fn only(&self, kept: impl Fn(&ParameterSpec) -> bool) -> Result<Layout, ModelError> {
        let class = |spec: &ParameterSpec| if kept(spec) { spec.class } else { ParameterClass::Constant };
        let specs = self.parameters.iter().map(|spec| ParameterSpec { class: class(spec), ..spec.clone() });
        Layout::new(specs.collect())
    }

    /// Where the exchanged parameters of `part`, a layout made of this one by [`Layout::exchanging`], lie in this one's flat
    /// vector, in order, neighbours joined.
    pub fn ranges_of(&self, part: &Layout) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for range in part.exchanged().filter_map(|(spec, _)| self.range(&spec.name)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    /// Keeps of a flat vector of this layout what `part` exchanges, in place.
    pub fn gather(&self, part: &Layout, values: &mut Vec<f32>) {
        let mut end = 0;
        for range in self.ranges_of(part) {
            let range = range.start.min(values.len())..range.end.min(values.len());
            let len = range.len();
            values.copy_within(range, end);
            end += len;
        }
        values.truncate(end);
    }

    /// Writes a flat vector of `part` over its places in one of this layout.
    pub fn scatter(&self, part: &Layout, from: &[f32], values: &mut [f32]) {
        let mut next = 0;
        for range in self.ranges_of(part) {
            let piece = from.get(next..next + range.len()).unwrap_or_default();
            next += range.len();
            if let Some(place) = values.get_mut(range).filter(|place| place.len() == piece.len()) {
                place.copy_from_slice(piece);
            }
        }
    }
}

/// Whether a name fits a pattern of `*` and `?`; in time of at most their lengths' product.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star was met, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), star) {
            (Some('*'), _) => {
                star = Some((p, n));
                p += 1;
            }
            (Some(&c), _) if c == '?' || Some(&c) == name.get(n) => (p, n) = (p + 1, n + 1),
            (_, Some((at, taken))) => {
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
            _ => return false,
        }
    }
    pattern.iter().skip(p).all(|&c| c == '*')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[usize], class| ParameterSpec { name: name.into(), shape: shape.into(), class };
        Layout::new(vec![
            spec("conv.weight", &[2, 2], ParameterClass::Trainable),
            spec("conv.bias", &[2], ParameterClass::Trainable),
            spec("norm.mean", &[2], ParameterClass::Statistic),
            spec("low", &[], ParameterClass::Constant),
            spec("fc.weight", &[3, 1], ParameterClass::Trainable),
            spec("fc.bias", &[3], ParameterClass::Trainable),
        ])
        .unwrap()
    }

    fn named(patterns: &[&str]) -> Selection {
        Selection::Named(patterns.iter().map(|pattern| (*pattern).to_owned()).collect())
    }

    #[test]
    fn what_is_not_trained_does_not_travel_and_values_find_their_places_again() {
        let full = layout();
        let exchange = Exchange { trained: named(&["fc.*", "conv.b?as"]), statistics: false, local: Arc::default() };
        let part = full.exchanging(&exchange).unwrap();
        assert_eq!(part.exchanged_len(), 8);
        assert_ne!(part.digest(), full.digest());
        assert_eq!(full.ranges_of(&part), [4..6, 8..14]);
        let all: Vec<f32> = (0u8..14).map(f32::from).collect();
        let mut gathered = all.clone();
        full.gather(&part, &mut gathered);
        assert_eq!(gathered, [4.0, 5.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0]);
        let mut scattered = vec![0.0; 14];
        full.scatter(&part, &gathered, &mut scattered);
        let expected: Vec<f32> =
            all.iter().map(|v| if [6.0, 7.0].contains(v) || *v < 4.0 { 0.0 } else { *v }).collect();
        assert_eq!(scattered, expected);
    }

    #[test]
    fn a_task_that_trains_everything_has_the_models_own_layout() {
        let full = layout();
        let all =
            full.exchanging(&Exchange { trained: Selection::All, statistics: true, local: Arc::default() }).unwrap();
        assert_eq!((all.digest(), full.ranges_of(&all)), (full.digest(), vec![Range { start: 0, end: 14 }]));
        let norms = Exchange { trained: Selection::BiasesAndNorms, statistics: true, local: Arc::default() };
        assert_eq!(full.ranges_of(&full.exchanging(&norms).unwrap()), [4..8, 11..14]);
    }

    #[test]
    fn what_is_local_is_trained_and_stays() {
        let full = layout();
        let local = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let own = Exchange { trained: Selection::All, statistics: true, local: local(&["norm*", "fc.*"]) };
        assert_eq!(full.ranges_of(&full.exchanging(&own).unwrap()), vec![Range { start: 0, end: 6 }]);
        assert_eq!(full.ranges_of(&full.staying(&own).unwrap()), vec![Range { start: 6, end: 14 }]);
        let none = Exchange { local: local(&[]), ..own.clone() };
        assert_eq!(full.staying(&none).unwrap().exchanged_len(), 0);
        let refused = |own: Exchange| own.check(&full).unwrap_err().to_string();
        assert!(refused(Exchange { local: local(&["bn*"]), ..own.clone() }).contains("local names \"bn*\""));
        let frozen = Exchange { statistics: false, local: local(&["norm*"]), ..own.clone() };
        assert!(refused(frozen).contains("fits nothing that is trained"), "a frozen mean does not move");
        assert!(refused(Exchange { local: local(&["*"]), ..own }).contains("nothing that travels"));
    }

    #[test]
    fn a_pattern_that_fits_nothing_is_refused_with_names_that_there_are() {
        let error = named(&["fc.*", "head*"]).check(&layout()).unwrap_err();
        assert!(error.contains("\"head*\"") && error.contains("conv.weight"), "{error}");
        let scale = ParameterSpec { name: "w".into(), shape: vec![2, 2], class: ParameterClass::Trainable };
        let error = Selection::BiasesAndNorms.check(&Layout::new(vec![scale]).unwrap()).unwrap_err();
        assert!(error.contains("leaves no parameter"), "{error}");
    }

    #[test]
    fn patterns_know_stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("fc*", "fc.weight", true),
            ("*.bias", "layer.bias", true),
            ("*a*b*", "xxaxxbxx", true),
            ("f?.w", "fc.w", true),
            ("fc", "fc.w", false),
            ("*.bias", "conv1.bias2", false),
            ("layer?.*.weight", "layer4.conv.weight", true),
            ("layer?.*.weight", "layer10.conv.weight", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b", false),
            ("*b", "ba", false),
            ("", "a", false),
            ("**", "", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
