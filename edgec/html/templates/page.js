// Sorts a table by the column whose head is pressed: numbers by data-value, the largest first, names by the alphabet.
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") !== (head.classList.contains("text") ? "ascending" : "descending");
      const down = head.classList.contains("text") ? !falling : falling;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.value === undefined) return cell.textContent.trim() === "–" ? null : cell.textContent;
        return cell.dataset.value === "" ? null : Number(cell.dataset.value);
      };
      const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return down ? order(y, x) : order(x, y);
      }));
    });
  });
}
