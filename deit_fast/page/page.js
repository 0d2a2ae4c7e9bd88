// Draws every figure, and sorts a table by the column whose heading is clicked.
document.querySelectorAll("figure").forEach((figure) => {
  const plot = figure.querySelector(".plot");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  vegaEmbed(plot, spec, { actions: false, renderer: "svg", tooltip: { disableDefaultStyle: true } })
    .then(() => { plot.dataset.drawn = "yes"; })
    .catch((error) => {
      plot.dataset.drawn = "no";
      plot.innerHTML = '<p class="failed"></p>';
      plot.firstChild.textContent = "This figure could not be drawn: " + error.message;
      console.error(error);
    });
});

const valueOf = (cell) => {
  if (cell.dataset.value === undefined) return cell.textContent;
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
};

const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));

document.querySelectorAll("table.sortable th button").forEach((button) => {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const descending = heading.getAttribute("aria-sort") !== "descending";
    heading.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = heading.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: valueOf(row.cells[heading.cellIndex]) }));
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);  // dashes stay last
      return descending ? compare(b.value, a.value) : compare(a.value, b.value);
    });
    body.append(...rows.map((entry) => entry.row));
  });
});
