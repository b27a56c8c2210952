"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      const value = (row) => row.cells[index].dataset.value;
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const a = value(one), b = value(other);
        if (a === "" || b === "") return (a === "") - (b === "");
        const numeric = !isNaN(a) && !isNaN(b);
        return sign * (numeric ? a - b : a.localeCompare(b));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
