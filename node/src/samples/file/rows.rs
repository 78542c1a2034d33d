//! The rows of a file of samples: raw values, labels, which rows were left out, and what a label means to a model.
//! Reading them is the formats' matter, keeping them `store`'s.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fedge_models::ElementType;

use super::{FileError, MAX_VALUES};

/// A label as the file gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RowLabel {
    /// Text: the name of a class or, where no class has that name, a class index.
    Text(String),
    /// A class index.
    Index(u32),
}

/// What the outputs for a file's rows should be, where they are not one label a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowTargets {
    /// The rows' own labels say it.
    Labels,
    /// Class indices, `shape`'s product of them a row.
    Classes {
        /// All rows' indices, row after row.
        labels: Vec<u32>,
        /// Shape of one row's labels.
        shape: Vec<usize>,
    },
    /// Numbers, `shape`'s product of them a row; finite.
    Values {
        /// All rows' numbers, row after row.
        values: Vec<f32>,
        /// Shape of one row's numbers.
        shape: Vec<usize>,
    },
}

/// What becomes of a file with a row that is wrong: a number that is missing or NaN, a label that is unknown, a picture
/// that does not decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRows {
    /// The file is refused, and the row named.
    #[default]
    Stop,
    /// The row is left out and counted; the file is refused where no row is left.
    Skip,
}

/// The rows that [`BadRows::Skip`] left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// What was wrong with the first of them, a sentence each that names the row or file.
    pub first: Vec<String>,
}

impl Skipped {
    const KEPT: usize = 10;

    /// That these were all rows of a file.
    pub(crate) fn none_left(&self, path: &Path) -> FileError {
        let first = self.first.first().map(String::as_str).unwrap_or_default();
        let problem = format!("no row is left: all {} were left out, the first for this: {first}", self.count);
        FileError::File { path: path.to_owned(), problem }
    }

    /// Adds those of a later piece.
    pub fn extend(&mut self, later: Skipped) {
        self.count += later.count;
        self.first.extend(later.first.into_iter().take(Skipped::KEPT.saturating_sub(self.first.len())));
    }

    pub(super) fn add(&mut self, error: &FileError) {
        self.count += 1;
        if self.first.len() < Skipped::KEPT {
            self.first.push(error.to_string());
        }
    }
}

/// Where in its source each row came from, for messages.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Places {
    /// One after the other, from this position.
    From(usize),
    /// At these positions.
    At(Vec<usize>),
    /// Each from a file of its own.
    Files(Vec<PathBuf>),
}

/// A row's values and its class index.
pub type LabelledRow = (Vec<f32>, u32);

/// The rows of one file, or of one folder of pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledRows {
    /// All rows' raw values, row after row: `[rows * sample_len]`, all finite.
    pub inputs: Vec<f32>,
    /// Number of values in a row, at least 1.
    pub sample_len: usize,
    /// One label a row, or none at all where [`super::read_inputs`] met a file without labels.
    pub labels: Vec<RowLabel>,
    /// Whose each row is, one a row, where [`super::read_with_nodes`] was asked for it; else none.
    pub nodes: Vec<String>,
    /// The classes that the source itself names, sorted: the folders of pictures. Empty where it names none, or where
    /// all its names are class indices.
    pub classes: Vec<String>,
    /// Rows that were left out.
    pub skipped: Skipped,
    pub(super) source: PathBuf,
    pub(super) places: Places,
    pub(super) bad_rows: BadRows,
    /// Whether more rows come of the same file: then a piece may lose all of its own.
    pub(super) is_piece: bool,
}

/// Rows as they are read: handed on whenever there are many, so that a file may be larger than memory.
pub(super) struct Pieces<'a> {
    /// The rows that were read since the last piece.
    pub rows: LabelledRows,
    /// Their places in the file.
    places: Vec<usize>,
    /// Where the rows come from in turn, in place of `places`.
    pub files: Vec<PathBuf>,
    /// Values of a piece, about.
    most: usize,
    each: &'a mut dyn FnMut(LabelledRows) -> Result<(), FileError>,
    /// Rows that were handed on.
    given: usize,
}

impl<'a> Pieces<'a> {
    /// Pieces of about `most` values; `each` takes them in order.
    pub(super) fn new(
        rows: LabelledRows,
        most: usize,
        each: &'a mut dyn FnMut(LabelledRows) -> Result<(), FileError>,
    ) -> Pieces<'a> {
        Pieces { rows, places: Vec::new(), files: Vec::new(), most, each, given: 0 }
    }

    /// Takes the row at this place: `take` adds it to the rows, or says why not, and then nothing of it stays.
    ///
    /// # Errors
    /// The row's, where rows that are wrong stop the reading; too many values for one piece; what the taker says.
    pub(super) fn take(
        &mut self,
        place: usize,
        take: impl FnOnce(&mut LabelledRows) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let rows = &mut self.rows;
        let (values, labels, nodes) = (rows.inputs.len(), rows.labels.len(), rows.nodes.len());
        match take(rows) {
            Ok(()) if rows.inputs.len() > MAX_VALUES => {
                let problem = format!("holds more than {MAX_VALUES} values; split it into several files");
                Err(FileError::File { path: rows.source.clone(), problem })
            }
            Ok(()) => {
                self.places.push(place);
                self.added()
            }
            Err(error) => {
                rows.inputs.truncate(values);
                rows.labels.truncate(labels);
                rows.nodes.truncate(nodes);
                self.refuse(error)
            }
        }
    }

    /// Hands the rows on if there are enough of them.
    ///
    /// # Errors
    /// What the taker says.
    pub(super) fn added(&mut self) -> Result<(), FileError> {
        if self.rows.inputs.len() >= self.most { self.give() } else { Ok(()) }
    }

    /// Leaves a row out, or stops, as the file is read.
    ///
    /// # Errors
    /// The row's error.
    pub(super) fn refuse(&mut self, error: FileError) -> Result<(), FileError> {
        if self.rows.bad_rows == BadRows::Stop {
            return Err(error);
        }
        self.rows.skipped.add(&error);
        Ok(())
    }

    /// Hands the rest on.
    ///
    /// # Errors
    /// What the taker says, and that the file holds no row that can be read.
    pub(super) fn finish(mut self, empty: FileError) -> Result<(), FileError> {
        let none = self.given == 0 && self.rows.is_empty();
        if none && self.rows.skipped.count == 0 {
            return Err(empty);
        }
        if none {
            return self.rows.check_some_left();
        }
        self.give()
    }

    fn give(&mut self) -> Result<(), FileError> {
        let mut next = LabelledRows::new(&self.rows.source, Vec::new(), self.rows.sample_len);
        next.bad_rows = self.rows.bad_rows;
        let mut rows = std::mem::replace(&mut self.rows, next);
        self.given += rows.len();
        rows.is_piece = self.most != usize::MAX;
        rows.places = match std::mem::take(&mut self.files) {
            files if files.is_empty() => Places::At(std::mem::take(&mut self.places)),
            files => Places::Files(files),
        };
        (self.each)(rows)
    }
}

impl LabelledRows {
    /// Rows without labels yet.
    pub(super) fn new(source: &Path, inputs: Vec<f32>, sample_len: usize) -> LabelledRows {
        LabelledRows {
            inputs,
            sample_len,
            labels: Vec::new(),
            nodes: Vec::new(),
            classes: Vec::new(),
            skipped: Skipped::default(),
            source: source.to_owned(),
            places: Places::From(1),
            bad_rows: BadRows::Stop,
            is_piece: false,
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.inputs.len() / self.sample_len.max(1)
    }

    /// Whether there are none; a file without rows is refused, so never after reading.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// The values of each row.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.inputs.chunks_exact(self.sample_len.max(1))
    }

    /// Class indices of all rows for a model with samples of `sample_len` values and these class names, of which there
    /// are `classes`. Names may be empty: then labels are indices, or the places of the classes that the source names
    /// ([`LabelledRows::classes`]). A row of an unknown label is an error that names it and the known labels, or is left
    /// out where the rows were read so ([`BadRows::Skip`]).
    ///
    /// # Errors
    /// [`FileError`]: an unknown label, rows of another width, no row left.
    pub fn class_indices(
        &mut self,
        sample_len: usize,
        classes: usize,
        names: &[String],
    ) -> Result<Vec<u32>, FileError> {
        self.check_width(sample_len)?;
        let own = if names.is_empty() { self.classes.clone() } else { Vec::new() };
        self.resolve(classes, if names.is_empty() { &own } else { names })
    }

    fn resolve(&mut self, classes: usize, names: &[String]) -> Result<Vec<u32>, FileError> {
        let by_name: HashMap<&str, usize> =
            names.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let resolve = |label: &RowLabel| {
            let index = match label {
                RowLabel::Index(index) => Some(*index as usize),
                RowLabel::Text(text) => by_name.get(text.as_str()).copied().or_else(|| index_in(text)),
            };
            index.filter(|&index| index < classes).and_then(|index| u32::try_from(index).ok())
        };
        let resolved: Vec<Option<u32>> = self.labels.iter().map(resolve).collect();
        let mut bad = Vec::new();
        for (row, label) in self.labels.iter().enumerate() {
            if resolved.get(row).is_some_and(Option::is_none) {
                let problem = format!("unknown label {}; {}", show(label), known_labels(classes, names));
                bad.push((row, self.row_error(row, problem)));
                if self.bad_rows == BadRows::Stop {
                    break;
                }
            }
        }
        self.leave_out(bad)?;
        Ok(resolved.into_iter().flatten().collect())
    }

    /// The rows with their class indices, as `SampleStore::add_many` takes them; errors as
    /// [`LabelledRows::class_indices`], but for labels that only the source knows: on one of many nodes they would mean
    /// other classes than on the next.
    ///
    /// # Errors
    /// As [`LabelledRows::class_indices`].
    pub fn into_samples(
        mut self,
        sample_len: usize,
        classes: usize,
        names: &[String],
    ) -> Result<(Vec<LabelledRow>, Skipped), FileError> {
        self.check_width(sample_len)?;
        let labels = self.resolve(classes, names)?;
        let samples = self.rows().map(<[f32]>::to_vec).zip(labels).collect();
        Ok((samples, self.skipped))
    }

    /// The labels as numbers to come close to. A row whose label is none is an error, or left out.
    ///
    /// # Errors
    /// The row, or that no row is left.
    pub fn numbers(&mut self) -> Result<Vec<f32>, FileError> {
        let number = |label: &RowLabel| match label {
            RowLabel::Index(index) => Some(*index as f32),
            RowLabel::Text(text) => text.parse().ok().filter(|value: &f32| value.is_finite()),
        };
        let values: Vec<Option<f32>> = self.labels.iter().map(number).collect();
        let problem = |row: usize| format!("the target {} is no finite number", show(&self.labels[row]));
        let bad = (0..values.len()).filter(|&row| values[row].is_none());
        let bad: Vec<_> = bad.map(|row| (row, self.row_error(row, problem(row)))).collect();
        self.leave_out(bad)?;
        Ok(values.into_iter().flatten().collect())
    }

    /// A row's problem, with its place.
    pub(super) fn row_error(&self, row: usize, problem: String) -> FileError {
        if let Places::Files(files) = &self.places {
            return FileError::File { path: files.get(row).unwrap_or(&self.source).clone(), problem };
        }
        FileError::Row { path: self.source.clone(), row: self.number(row), problem }
    }

    /// Which row of the file it is, from 1.
    fn number(&self, row: usize) -> usize {
        match &self.places {
            Places::From(first) => first + row,
            Places::At(places) => places.get(row).copied().unwrap_or_default(),
            Places::Files(_) => row + 1,
        }
    }

    /// Takes rows out, each for its reason, or refuses the file for the first of them, as it was read.
    ///
    /// # Errors
    /// The first reason, or that no row is left.
    pub(super) fn leave_out(&mut self, bad: Vec<(usize, FileError)>) -> Result<(), FileError> {
        if bad.is_empty() {
            return Ok(());
        }
        let mut keep = vec![true; self.len()];
        for (row, error) in bad {
            if self.bad_rows == BadRows::Stop {
                return Err(error);
            }
            // One row may be wrong for many reasons.
            if keep.get(row) == Some(&true) {
                self.skipped.add(&error);
                keep[row] = false;
            }
        }
        fn only<T>(values: &mut Vec<T>, keep: &[bool]) {
            let mut keep = keep.iter();
            values.retain(|_| keep.next().copied().unwrap_or(true));
        }
        if let Places::From(first) = self.places {
            self.places = Places::At((first..first + keep.len()).collect());
        }
        match &mut self.places {
            Places::From(_) => {}
            Places::At(places) => only(places, &keep),
            Places::Files(files) => only(files, &keep),
        }
        only(&mut self.labels, &keep);
        only(&mut self.nodes, &keep);
        let kept = self.rows().zip(&keep).filter(|(_, keep)| **keep).flat_map(|(row, _)| row).copied().collect();
        self.inputs = kept;
        if self.is_piece { Ok(()) } else { self.check_some_left() }
    }

    /// Takes rows out, or refuses the file, with a number that is no value of the type of the model's input.
    ///
    /// # Errors
    /// The row, or that no row is left.
    pub fn leave_out_not_held(&mut self, element: ElementType) -> Result<(), FileError> {
        let mut bad = Vec::new();
        for (row, values) in self.rows().enumerate() {
            if let Some(value) = values.iter().find(|value| !element.holds(**value)) {
                let problem = format!("holds {value}, but the model takes {}", element.name());
                bad.push((row, self.row_error(row, problem)));
            }
        }
        self.leave_out(bad)
    }

    /// Takes rows with NaN or infinity out, or refuses the file; `what` names the values in the message.
    ///
    /// # Errors
    /// As [`LabelledRows::leave_out`].
    pub(super) fn leave_out_not_finite(&mut self, what: &str) -> Result<(), FileError> {
        let mut bad = Vec::new();
        for (row, values) in self.rows().enumerate() {
            let Some((column, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) else {
                continue;
            };
            let problem = format!("{what} holds {value}, which is not a finite float32; drop or repair the row");
            bad.push((
                row,
                FileError::Value {
                    path: self.source.clone(),
                    row: self.number(row),
                    column: (column + 1).to_string(),
                    problem,
                },
            ));
        }
        self.leave_out(bad)
    }

    /// # Errors
    /// That no row is left, with the first reason.
    pub(super) fn check_some_left(&self) -> Result<(), FileError> {
        if self.inputs.is_empty() { Err(self.skipped.none_left(&self.source)) } else { Ok(()) }
    }

    /// # Errors
    /// Rows of another width.
    pub(crate) fn check_width(&self, sample_len: usize) -> Result<(), FileError> {
        if self.sample_len == sample_len {
            return Ok(());
        }
        Err(FileError::File {
            path: self.source.clone(),
            problem: format!(
                "rows have {} values, but the model takes {sample_len}; give one column a value and one for the label",
                self.sample_len
            ),
        })
    }
}

/// What labels a model knows, for messages: "known labels are ...".
pub(crate) fn known_labels(classes: usize, names: &[String]) -> String {
    const SHOWN: usize = 20;
    let last = classes.saturating_sub(1);
    if names.is_empty() {
        return format!("known labels are the class indices 0 to {last}");
    }
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("known labels are {}{more}, or the class indices 0 to {last}", shown.join(", "))
}

/// A class index written as text: `7`, or `7.0` as spreadsheets do.
pub(super) fn index_in(text: &str) -> Option<usize> {
    let digits = text.strip_suffix(".0").unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

pub(super) fn show(label: &RowLabel) -> String {
    match label {
        RowLabel::Index(index) => index.to_string(),
        RowLabel::Text(text) => format!("{:?}", shorten(text)),
    }
}

/// Text from a file, cut to a length that fits a message.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain("...".chars()).collect()
}

/// The name of a row's node, as the file gives it.
pub(super) fn node_name(text: &str) -> Result<String, &'static str> {
    const LONGEST: usize = 64;
    match text.chars().count() {
        0 => Err("the node's name is missing; say whose the row is"),
        1..=LONGEST if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("the node's name has more than 64 characters or control characters; give a short name"),
    }
}
