// A list above a table `.filtered` for each column in `data-filters`: rows with another value are hidden.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.filtered")) {
    const rows = [...table.tBodies[0].rows];
    const bar = document.createElement("div");
    bar.className = "filters";
    const lists = table.dataset.filters.split(",").map((number) => {
      const column = Number(number);
      const label = document.createElement("label");
      const list = document.createElement("select");
      list.append(new Option("all", ""));
      for (const value of new Set(rows.map((row) => row.cells[column].textContent).sort())) {
        list.append(new Option(value || "not said", value || "-"));
      }
      list.dataset.column = column;
      label.append(table.tHead.rows[0].cells[column].textContent + " ", list);
      bar.append(label);
      return list;
    });
    const show = () => {
      for (const row of rows) {
        row.hidden = lists.some(
          (list) => list.value && list.value !== (row.cells[list.dataset.column].textContent || "-")
        );
      }
    };
    bar.addEventListener("change", show);
    table.parentElement.before(bar);
  }
});
