// Gradio's own field forgets the folders that files come from. MOST is put in by demo/components.py.
const input = element.querySelector('input'), said = element.querySelector('span');
input.addEventListener('change', async () => {
  const images = [...input.files]
    .filter(file => /[.](jpe?g|png|webp|bmp)$/i.test(file.name))
    .sort((a, b) => a.webkitRelativePath < b.webkitRelativePath ? -1 : 1);
  const taken = images.slice(0, MOST), entries = [];
  for (const file of taken) {
    said.textContent = `reading ${entries.length + 1} of ${taken.length} images ...`;
    const {path} = await upload(file);
    entries.push([file.webkitRelativePath, path]);
  }
  const all = taken.length == images.length;
  said.textContent = all ? `${taken.length} images chosen`
    : `the first ${taken.length} of ${images.length} images chosen`;
  trigger('upload', {entries});
});
