//! Draws the model on a screen.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout},
    style::{Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Cell, Row, Table},
};

use super::{
    super::{
        paint::address,
        style::{self, Paint},
    },
    model::{Model, Tab},
};

/// The line at the bottom.
pub const KEYS: &str = "q quit  Tab view  s sort  r reverse  arrows, PgUp, PgDn, Home, End move";

/// Spaces between columns.
const GAP: u16 = 2;

/// Draws the model.
pub fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ]);
    let [first, second, tabs, body, foot] = areas.areas(frame.area());
    let paint = Paint::stdout();
    let bold = paint.for_screen(style::HEADING);
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Line::styled(model.head()[0].as_str(), bold), first);
    frame.render_widget(Line::raw(model.head()[1].as_str()), second);
    let name = |tab: Tab| Span::styled(format!(" {} ", tab.name()), if tab == model.tab() { reversed } else { bold });
    frame.render_widget(Line::from_iter(Tab::ALL.map(name)), tabs);
    let foot_line = match model.fault() {
        Some(fault) => Line::styled(fault, paint.for_screen(style::ERROR)),
        None => Line::styled(KEYS, paint.for_screen(style::FAINT)),
    };
    frame.render_widget(foot_line, foot);

    let height = usize::from(body.height.saturating_sub(1));
    let (from, selected) = model.window(height);
    let (sorted_by, is_reversed) = model.order();
    let table = model.table();
    let widths = fitting(&table.widths(), body.width);
    let align = |at: usize| if table.columns[at].is_number { Alignment::Right } else { Alignment::Left };
    let head = table.columns.iter().take(widths.len()).enumerate().map(|(at, column)| {
        let mark = match sorted_by {
            Some(by) if by == at && is_reversed => "^",
            Some(by) if by == at => "v",
            _ => "",
        };
        Cell::from(Text::from(format!("{}{mark}", column.name)).alignment(align(at)))
    });
    let rows = table.rows.iter().enumerate().skip(from).take(height).map(|(number, cells)| {
        let cells = cells.iter().take(widths.len()).enumerate();
        let row = Row::new(cells.map(|(at, cell)| {
            let text = Text::from(cell.text.as_str()).alignment(align(at));
            let is_address = address(&cell.text).is_some_and(|range| range == (0..cell.text.len()));
            Cell::from(if is_address { text.style(paint.for_screen(style::ADDRESS)) } else { text })
        }));
        if number == selected { row.style(reversed) } else { row }
    });
    let drawn = Table::new(rows, widths.iter().copied().map(Constraint::Length)).column_spacing(GAP);
    frame.render_widget(drawn.header(Row::new(head).style(bold)), body);
}

/// The widths of the columns that fit. The last one may be cut off.
fn fitting(widths: &[u16], room: u16) -> Vec<u16> {
    /// Smallest useful width of a column that is cut off.
    const MIN_WIDTH: u16 = 4;
    let (mut fitting, mut left) = (Vec::new(), room);
    for &width in widths {
        if left < width.min(MIN_WIDTH) {
            break;
        }
        let width = width.min(left);
        fitting.push(width);
        left = left.saturating_sub(width + GAP);
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_column_may_be_cut_off() {
        assert_eq!(fitting(&[10, 5], 20), [10, 5]);
        assert_eq!(fitting(&[10, 10, 10], 20), [10, 8]);
        assert_eq!(fitting(&[10, 10], 14), [10]);
        assert_eq!(fitting(&[10], 0), [] as [u16; 0]);
    }
}
