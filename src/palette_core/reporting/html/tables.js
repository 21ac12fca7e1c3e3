"use strict";
// Tables that are sorted by a click on a title, and filtered by what stands in their first column.
for (const table of document.querySelectorAll("table.sorted")) {
  const body = table.tBodies[0];
  const value = (row, at) => {
    const text = row.cells[at].dataset.v ?? row.cells[at].textContent.trim();
    const number = Number(text);
    return text === "" ? null : Number.isNaN(number) ? text : number;
  };
  for (const [at, title] of [...table.tHead.rows[0].cells].entries()) {
    title.querySelector("button")?.addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const row of body.querySelectorAll("tr.opening")) row.remove();
      for (const button of body.querySelectorAll(".open")) button.setAttribute("aria-expanded", "false");
      const rows = [...body.rows].map((row) => [value(row, at), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // nothing comes last
        const order = typeof a === "number" && typeof b === "number" ? a - b
          : String(a).localeCompare(String(b), undefined, { numeric: true });
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  }
  document.querySelector(`input[data-of="${table.id}"]`)?.addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of body.querySelectorAll("tr.opening")) row.remove();
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      row.querySelector(".open")?.setAttribute("aria-expanded", "false");
    }
  });
}
