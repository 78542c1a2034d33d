//! Draws how accuracy and loss went, round by round, as SVG or PNG. The font comes along: no system font is needed.
//! What the figures are is the simulation's matter.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

/// A subset of DejaVu Sans; its licence lies beside it.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");
const FAMILY: &str = "sans-serif";
/// Size of the picture, in CSS pixels.
const SIZE: (u32, u32) = (860, 640);
/// Pixels of a PNG for one CSS pixel.
const PNG_SCALE: u32 = 2;
/// The PNG is drawn this many times as large and averaged: smooth edges.
const SMOOTHING: u32 = 2;
/// Most points that are marked with dots.
const DOTTED: usize = 60;

const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const FAINT: RGBColor = RGBColor(0x77, 0x77, 0x77);
const GRID: RGBColor = RGBColor(0xe6, 0xe6, 0xe6);

/// One line of a chart: what it shows, and its points (round, value).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) color: RGBColor,
    pub(super) points: Vec<(f64, f64)>,
}

/// Two panels under one title.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) subtitle: String,
    /// Percent.
    pub(super) accuracy: Vec<Line>,
    /// Nats.
    pub(super) loss: Vec<Line>,
}

/// The form of a picture, by its file's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Svg,
    Png,
}

impl Form {
    pub(super) fn of(path: &Path) -> anyhow::Result<Form> {
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Ok(Form::Svg),
            Some("png") => Ok(Form::Png),
            _ => bail!("--plot {}: pictures are .svg or .png; give the file one of these endings", path.display()),
        }
    }
}

impl Chart {
    /// The picture's bytes.
    pub(super) fn draw(&self, form: Form) -> anyhow::Result<Vec<u8>> {
        register_font(FAMILY, FontStyle::Normal, FONT).map_err(|_| anyhow!("the chart's font is damaged"))?;
        match form {
            Form::Svg => {
                let mut text = String::new();
                self.on(SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), 1.0)?;
                Ok(text.into_bytes())
            }
            Form::Png => {
                let scale = PNG_SCALE * SMOOTHING;
                let (width, height) = (SIZE.0 * scale, SIZE.1 * scale);
                let mut pixels = vec![0xff; (width * height * 3) as usize];
                let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
                self.on(area, f64::from(scale))?;
                Ok(super::png::encode(&averaged(&pixels, width as usize), SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE))
            }
        }
    }

    fn on<B: DrawingBackend>(&self, area: DrawingArea<B, plotters::coord::Shift>, scale: f64) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        let px = |size: f64| (size * scale).round() as i32;
        area.fill(&WHITE)?;
        let title = (FAMILY, px(20.0)).into_font().color(&INK);
        area.draw(&Text::new(self.title.clone(), (px(24.0), px(18.0)), title))?;
        let subtitle = (FAMILY, px(13.0)).into_font().color(&FAINT);
        area.draw(&Text::new(self.subtitle.clone(), (px(24.0), px(44.0)), subtitle))?;
        let (_, panels) = area.split_vertically(px(64.0));
        match (self.accuracy.is_empty(), self.loss.is_empty()) {
            (false, false) => {
                let (upper, lower) = panels.split_vertically(px(330.0));
                panel(&upper, &self.accuracy, Unit::Percent, "", scale)?;
                panel(&lower, &self.loss, Unit::Nats, "round", scale)?;
            }
            (false, true) => panel(&panels, &self.accuracy, Unit::Percent, "round", scale)?,
            (true, _) => panel(&panels, &self.loss, Unit::Nats, "round", scale)?,
        }
        area.present().context("the chart can't be drawn")
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Percent,
    Nats,
}

fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    lines: &[Line],
    unit: Unit,
    x_name: &str,
    scale: f64,
) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let px = |size: f64| (size * scale).round() as i32;
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let last = points().map(|(round, _)| round).fold(1.0, f64::max);
    let (low, high) = bounds(points().map(|(_, value)| value), unit);
    let mut chart = ChartBuilder::on(area)
        .margin_left(px(12.0))
        .margin_right(px(28.0))
        .margin_top(px(10.0))
        .margin_bottom(px(6.0))
        .x_label_area_size(px(if x_name.is_empty() { 24.0 } else { 44.0 }))
        .y_label_area_size(px(62.0))
        .build_cartesian_2d(0.0..last, low..high)?;
    let label = |size: f64, color: &RGBColor| (FAMILY, px(size)).into_font().color(color);
    let y_text = |value: &f64| match unit {
        Unit::Percent => format!("{value:.0} %"),
        Unit::Nats => format!("{value:.2}"),
    };
    chart
        .configure_mesh()
        .bold_line_style(ShapeStyle { color: GRID.to_rgba(), filled: false, stroke_width: px(1.0) as u32 })
        .light_line_style(TRANSPARENT)
        .axis_style(ShapeStyle { color: FAINT.to_rgba(), filled: false, stroke_width: px(1.0) as u32 })
        .label_style(label(12.0, &INK))
        .axis_desc_style(label(13.0, &INK))
        .x_desc(x_name)
        .y_desc(if unit == Unit::Percent { "accuracy" } else { "loss (nats)" })
        .x_labels(10)
        .y_labels(6)
        .x_label_formatter(&|round| if round.fract() == 0.0 { format!("{round:.0}") } else { String::new() })
        .y_label_formatter(&y_text)
        .set_all_tick_mark_size(px(4.0))
        .draw()?;
    for line in lines {
        let style = ShapeStyle { color: line.color.to_rgba(), filled: false, stroke_width: px(2.0) as u32 };
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        if line.points.len() <= DOTTED {
            let dots = line.points.iter().map(|point| Circle::new(*point, px(3.0), line.color.filled()));
            chart.draw_series(dots)?;
        }
    }
    legend(area, lines, unit, scale)
}

/// Names beside short strokes, in the corner that the lines leave: accuracy rises, loss falls.
fn legend<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    lines: &[Line],
    unit: Unit,
    scale: f64,
) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let px = |size: f64| (size * scale).round() as i32;
    let (width, height) = area.dim_in_pixel();
    let (width, height) = (width as i32, height as i32);
    let top = match unit {
        Unit::Percent => height - px(46.0 + 20.0 * lines.len() as f64),
        Unit::Nats => px(20.0),
    };
    let widest = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    let left = width - px(28.0 + 62.0 + 6.8 * widest as f64);
    let box_style = ShapeStyle { color: WHITE.mix(0.85), filled: true, stroke_width: 0 };
    let corners = [(left - px(8.0), top - px(6.0)), (width - px(36.0), top + px(20.0 * lines.len() as f64) - px(2.0))];
    area.draw(&Rectangle::new(corners, box_style))?;
    for (index, line) in lines.iter().enumerate() {
        let y = top + px(20.0 * index as f64 + 6.0);
        let style = ShapeStyle { color: line.color.to_rgba(), filled: true, stroke_width: px(2.0) as u32 };
        area.draw(&PathElement::new(vec![(left, y), (left + px(24.0), y)], style))?;
        area.draw(&Circle::new((left + px(12.0), y), px(3.0), line.color.filled()))?;
        let text = (FAMILY, px(13.0)).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(line.name, (left + px(32.0), y), text))?;
    }
    Ok(())
}

/// The axis: whole tens of percent around the values; losses from 0, without what a diverged round would make of it.
fn bounds(values: impl Iterator<Item = f64>, unit: Unit) -> (f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return (0.0, 1.0) };
    match unit {
        Unit::Percent => {
            let low = (least / 10.0).floor() * 10.0;
            (low, ((most / 10.0).ceil() * 10.0).clamp(low + 10.0, 100.0_f64.max(low + 10.0)))
        }
        Unit::Nats => {
            let usual = values.get(values.len() * 98 / 100).unwrap_or(most);
            (0.0, if *most > 4.0 * usual { 1.2 * usual } else { 1.05 * most }.max(0.1))
        }
    }
}

/// Each square of `SMOOTHING` × `SMOOTHING` pixels becomes one.
fn averaged(pixels: &[u8], width: usize) -> Vec<u8> {
    let side = SMOOTHING as usize;
    let mut out = Vec::with_capacity(pixels.len() / (side * side));
    for rows in pixels.chunks_exact(width * 3 * side) {
        for x in (0..width * 3).step_by(3 * side) {
            for channel in 0..3 {
                let at = |row: usize, column: usize| row * width * 3 + x + column * 3 + channel;
                let square = (0..side).flat_map(|row| (0..side).map(move |column| (row, column)));
                let sum: usize = square.filter_map(|(r, c)| rows.get(at(r, c))).map(|value| usize::from(*value)).sum();
                out.push((sum / (side * side)) as u8);
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let line = |name, color, f: fn(f64) -> f64| Line {
            name,
            color,
            points: (0..=20).map(|round| (f64::from(round), f(f64::from(round)))).collect(),
        };
        Chart {
            title: "digits: fedavg".into(),
            subtitle: "10 nodes".into(),
            accuracy: vec![line("test", RED, |round| 100.0 - 90.0 / (1.0 + round))],
            loss: vec![line("training", BLUE, |round| 2.3 / (1.0 + round))],
        }
    }

    #[test]
    fn both_forms_are_drawn_without_any_font_of_the_system() {
        let svg = String::from_utf8(chart().draw(Form::Svg).unwrap()).unwrap();
        for text in ["digits: fedavg", "10 nodes", "accuracy", "round", "test", "training", "100 %"] {
            assert!(svg.contains(text), "{text}");
        }
        let png = chart().draw(Form::Png).unwrap();
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    }

    #[test]
    fn a_chart_of_one_point_or_of_one_panel_is_drawn_as_well() {
        let mut one = chart();
        one.accuracy[0].points.truncate(1);
        one.loss.clear();
        one.draw(Form::Svg).unwrap();
        one.accuracy.clear();
        one.draw(Form::Svg).unwrap();
    }

    #[test]
    fn axes_hold_their_values_and_one_diverged_round_does_not_flatten_the_rest() {
        assert_eq!(bounds([12.0, 97.3].into_iter(), Unit::Percent), (10.0, 100.0));
        assert_eq!(bounds([100.0].into_iter(), Unit::Percent), (100.0, 110.0));
        let losses = std::iter::repeat_n(1.0, 99).chain([1e6]);
        assert!(bounds(losses, Unit::Nats).1 < 2.0);
    }

    #[test]
    fn other_endings_are_refused() {
        assert_eq!(Form::of(Path::new("a/b.SVG")).unwrap(), Form::Svg);
        let error = Form::of(Path::new("b.pdf")).unwrap_err().to_string();
        assert!(error.contains("--plot b.pdf") && error.contains(".svg or .png"), "{error}");
    }
}
