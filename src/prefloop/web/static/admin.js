/* Admin pages work without this file. It copies what is shown once, and numbers the lines of a project's YAML. */

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      button.textContent = button.dataset.copied;
    } catch {
      field.focus(); // no clipboard over plain http: it is selected, Ctrl+C takes it
    }
  });
}

for (const gutter of document.querySelectorAll("[data-gutter-of]")) {
  const field = document.getElementById(gutter.dataset.gutterOf);
  const bad = new Set(
    [...document.querySelectorAll("#errors code")].map((one) => Number(/^line (\d+):/.exec(one.textContent)?.[1])),
  );
  const draw = () => {
    const number = field.value.split("\n").length;
    if (gutter.childElementCount !== number) {
      gutter.replaceChildren(
        ...Array.from({ length: number }, (_, place) => {
          const line = document.createElement("div");
          line.textContent = place + 1;
          line.classList.toggle("bad", bad.has(place + 1));
          return line;
        }),
      );
    }
    gutter.scrollTop = field.scrollTop;
  };
  field.addEventListener("input", draw);
  field.addEventListener("scroll", draw);
  draw();
}
