//! The file that says which sample belongs to which node: written for other programs to train on the very same split,
//! read back as an assignment. Rows are those of the data file, counted from 0.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::population::{Node, Population};

/// Version of the form.
const FORMAT: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;
/// Longest name of a node.
const MAX_NAME: usize = 64;

/// The file's content, JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitsFile {
    /// Version of this form: 1.
    pub format: u32,
    /// Samples of the data file; rows are below this.
    pub samples: usize,
    /// The test part's rows; empty where the test set is a file of its own.
    #[serde(default)]
    pub test: Vec<u32>,
    /// Every node.
    pub nodes: Vec<NodeRows>,
}

/// One node's rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRows {
    /// Its name.
    pub name: String,
    /// Rows that it trains on.
    pub train: Vec<u32>,
    /// Rows that it evaluates with.
    #[serde(default)]
    pub held_out: Vec<u32>,
}

/// A file of splits that could not be read, was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SplitsError {
    /// Reading or writing.
    #[error("{}: cannot {action} the file: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// What is wrong in it.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl SplitsFile {
    /// The splits of a population over a file of `samples` samples.
    pub fn of(population: &Population, samples: usize) -> SplitsFile {
        let nodes = population.nodes.iter().map(|node| NodeRows {
            name: node.name.clone(),
            train: node.train.to_vec(),
            held_out: node.held_out.to_vec(),
        });
        SplitsFile { format: FORMAT, samples, test: population.test_rows.clone(), nodes: nodes.collect() }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`SplitsError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), SplitsError> {
        let failed = |source| SplitsError::Io { path: path.to_owned(), action: "write", source };
        let text = serde_json::to_string(self).map_err(|e| failed(e.into()))?;
        std::fs::write(path, text + "\n").map_err(failed)
    }

    /// Reads a file; [`SplitsFile::check`] is still to do.
    ///
    /// # Errors
    /// [`SplitsError`] with the line where it does not parse.
    pub fn read(path: &Path) -> Result<SplitsFile, SplitsError> {
        let failed = |source| SplitsError::Io { path: path.to_owned(), action: "read", source };
        let refused = |problem: String| SplitsError::File { path: path.to_owned(), problem };
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
            return Err(refused(format!("is larger than {MAX_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        serde_json::from_str(&text)
            .map_err(|e| refused(format!("is no file of splits: {e}; --export-splits writes one")))
    }

    /// The nodes and the test rows, each checked: no row twice, none beyond `samples`, no name twice.
    pub(super) fn check(self, path: &Path, samples: usize) -> Result<(Vec<Node>, Vec<u32>), SplitsError> {
        let refused = |problem: String| SplitsError::File { path: path.to_owned(), problem };
        if self.format != FORMAT {
            return Err(refused(format!("has the format {}, but this fedge reads {FORMAT}", self.format)));
        }
        if self.samples != samples {
            return Err(refused(format!(
                "is of {} samples, but the data has {samples}: of another file",
                self.samples
            )));
        }
        let mut seen = vec![false; samples];
        let mut take = |owner: &str, rows: Vec<u32>| -> Result<Vec<u32>, SplitsError> {
            for &row in &rows {
                match seen.get_mut(row as usize) {
                    Some(seen) if !*seen => *seen = true,
                    Some(_) => return Err(refused(format!("{owner} has row {row}, which is given twice"))),
                    None => {
                        return Err(refused(format!("{owner} has row {row}, but the data ends at {}", samples - 1)));
                    }
                }
            }
            Ok(rows)
        };
        let test = take("the test part", self.test)?;
        let mut names = BTreeSet::new();
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.into_iter().enumerate() {
            let owner = format!("node {}", index + 1);
            if !(1..=MAX_NAME).contains(&node.name.chars().count()) || node.name.chars().any(char::is_control) {
                return Err(refused(format!("{owner} has a name that is not 1 to {MAX_NAME} printable characters")));
            }
            if !names.insert(node.name.clone()) {
                return Err(refused(format!("{owner} has the name {:?}, which is given twice", node.name)));
            }
            let (train, held_out) = (take(&owner, node.train)?.into(), take(&owner, node.held_out)?.into());
            nodes.push(Node { name: node.name, train, held_out });
        }
        Ok((nodes, test))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file() -> SplitsFile {
        let node = |name: &str, train: &[u32], held_out: &[u32]| NodeRows {
            name: name.to_owned(),
            train: train.to_vec(),
            held_out: held_out.to_vec(),
        };
        SplitsFile { format: 1, samples: 6, test: vec![5], nodes: vec![node("a", &[0, 2], &[4]), node("b", &[1], &[])] }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("splits.json");
        file().write(&path).unwrap();
        let (nodes, test) = SplitsFile::read(&path).unwrap().check(&path, 6).unwrap();
        assert_eq!(test, [5]);
        assert_eq!((nodes[0].name.as_str(), &*nodes[0].train, &*nodes[0].held_out), ("a", &[0, 2][..], &[4][..]));
    }

    #[test]
    fn rows_and_names_given_twice_or_out_of_range_are_refused_by_node() {
        let path = Path::new("splits.json");
        let refused = |change: fn(&mut SplitsFile)| {
            let mut file = file();
            change(&mut file);
            file.check(path, 6).unwrap_err().to_string()
        };
        assert!(refused(|f| f.nodes[1].train.push(4)).contains("node 2 has row 4"));
        assert!(refused(|f| f.nodes[0].train.push(6)).contains("ends at 5"));
        assert!(refused(|f| f.test.push(5)).contains("test part"));
        assert!(refused(|f| f.nodes[1].name = "a".into()).contains("given twice"));
        assert!(refused(|f| f.nodes[1].name = String::new()).contains("node 2"));
        assert!(refused(|f| f.format = 2).contains("format 2"));
        assert!(refused(|f| f.samples = 7).contains("of another file"));
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("splits.json");
        std::fs::write(&broken, "{\"format\": 1,\n\"nods\": []}").unwrap();
        let error = SplitsFile::read(&broken).unwrap_err().to_string();
        assert!(error.contains("nods") && error.contains("line 2"), "{error}");
    }
}
