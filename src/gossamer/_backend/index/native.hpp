// Indices of the non-zeros of a dense matrix, by counting: two passes over the rows, O(n + cols) for the columns.
#pragma once
#include <cstdint>
#include <cstring>

#include "../native/parallel.hpp"

namespace gs {

// A sparse matrix without its values: of rows, row by row, or of columns, column by column.
struct Index {
    const int32_t *ptr, *idx, *perm;  // (outer + 1,), (n,), (n,) or null: the place of entry k among the values
    int64_t outer, inner;
};

// crow (rows + 1,): where the non-zeros of each row of w (rows, cols) begin. Their number.
template <class T>
int64_t row_pointers(const T* w, int64_t rows, int64_t cols, int32_t* crow, Machine machine) {
    parallel(machine.threads, [&](int t, int threads) {
        for (int64_t i = rows * t / threads; i < rows * (t + 1) / threads; i++) {
            int32_t count = 0;
            for (int64_t j = 0; j < cols; j++) count += w[i * cols + j] != T(0);
            crow[i + 1] = count;
        }
    });
    int64_t n = crow[0] = 0;
    for (int64_t i = 0; i < rows; i++) crow[i + 1] = int32_t(n += crow[i + 1]);
    return n;
}

// col (n,): their columns. Every entry is written; the next one overwrites it unless its weight is not zero.
template <class T>
void row_columns(const T* w, int64_t rows, int64_t cols, const int32_t* crow, int32_t* col, Machine machine) {
    parallel(machine.threads, [&](int t, int threads) {
        for (int64_t i = rows * t / threads; i < rows * (t + 1) / threads; i++) {
            int32_t k = crow[i], j = 0;
            for (const int32_t end = crow[i + 1]; k < end; j++) col[k] = j, k += w[i * cols + j] != T(0);
        }
    });
}

// ccol (cols + 1,), row (n,), perm (n,): the same entries in column order, by counting.
inline void column_order(const int32_t* crow, const int32_t* col, int64_t rows, int64_t cols, int32_t* ccol,
                         int32_t* row, int32_t* perm) {
    std::memset(ccol, 0, (cols + 1) * sizeof(int32_t));
    for (int64_t k = 0; k < crow[rows]; k++) ccol[col[k] + 1]++;
    for (int64_t j = 0; j < cols; j++) ccol[j + 1] += ccol[j];
    for (int64_t i = 0; i < rows; i++)
        for (int32_t k = crow[i]; k < crow[i + 1]; k++) {
            const int32_t at = ccol[col[k]]++;  // column by column, the beginning becomes the end
            row[at] = int32_t(i), perm[at] = k;
        }
    std::memmove(ccol + 1, ccol, cols * sizeof(int32_t));  // each end is the beginning of the next
    ccol[0] = 0;
}

// values (n,): the entries of w (rows, cols) there.
template <class T>
void values_at(const T* w, int64_t rows, int64_t cols, const int32_t* crow, const int32_t* col, T* values,
               Machine machine) {
    parallel(machine.threads, [&](int t, int threads) {
        for (int64_t i = share(crow, rows, t, threads); i < share(crow, rows, t + 1, threads); i++)
            for (int32_t k = crow[i]; k < crow[i + 1]; k++) values[k] = w[i * cols + col[k]];
    });
}

}  // namespace gs
